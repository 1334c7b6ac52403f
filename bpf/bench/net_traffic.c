/* net_traffic.c - makes traffic for `pytest-isolate bench network` and tests/kernel/network/test_exact.py.
 *
 *   udp CPU COUNT SIZE ADDRESS PORT      COUNT datagrams with sendmmsg; prints how many were sent
 *   slice CPU ROUNDS N SIZE name,cgroup,netns ...
 *   connect CPU ROUNDS N name,cgroup,netns ...
 * slice and connect are interleaved A/B/n: every configuration has a socket pair in its own cgroup and namespace, and takes
 * its turn for N operations, so that drift and neighbours hit all alike. They print one line of median nanoseconds per operation
 * and round: name followed by the rounds.
 * Refuses: to judge.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64
#define PORT 7777

struct config {
	char *name;
	int sender, receiver;
	double *ns;
	struct sockaddr_in address;
};

static char payload[65536];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* softirqs of ours included, other programs not */
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void pin(int cpu)
{
	cpu_set_t set;

	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("affinity");
}

static void enter(const char *cgroup, const char *netns)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0", 1) != 1)
		die(path);
	close(fd);
	fd = open(netns, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die(netns);
	close(fd);
}

static void fill(struct mmsghdr *messages, struct iovec *vectors, char *buffer, size_t stride, int size)
{
	memset(messages, 0, sizeof(*messages) * BATCH);
	for (int i = 0; i < BATCH; i++) {
		vectors[i].iov_base = buffer + i * stride;
		vectors[i].iov_len = size;
		messages[i].msg_hdr.msg_iov = &vectors[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
}

static int udp(char **a)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(a[4]))};
	long count = atol(a[1]), sent = 0;
	struct mmsghdr messages[BATCH];
	struct iovec vectors[BATCH];
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), got;

	pin(atoi(a[0]));
	inet_pton(AF_INET, a[3], &to.sin_addr);
	if (connect(fd, (void *)&to, sizeof(to)))
		die("connect");
	fill(messages, vectors, payload, 0, atoi(a[2]));
	while (sent < count) {
		got = sendmmsg(fd, messages, count - sent < BATCH ? count - sent : BATCH, 0);
		if (got < 0 && errno != ECONNREFUSED && errno != ENOBUFS)
			die("sendmmsg");
		sent += got > 0 ? got : 0;
	}
	printf("%ld\n", sent);
	return 0;
}

static int parse(int n, char **specs, struct config *c, int rounds, int type)
{
	for (int i = 0; i < n; i++) {
		char *text = strdup(specs[i]), *cgroup, *netns;
		int bytes = 32 << 20, yes = 1;

		c[i].name = strtok(text, ",");
		cgroup = strtok(0, ",");
		netns = strtok(0, ",");
		enter(cgroup, netns);
		c[i].address = (struct sockaddr_in){
			.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr = {htonl(INADDR_LOOPBACK)}};
		c[i].receiver = socket(AF_INET, type | SOCK_CLOEXEC, 0);
		setsockopt(c[i].receiver, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes));
		setsockopt(c[i].receiver, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
		if (bind(c[i].receiver, (void *)&c[i].address, sizeof(c[i].address)))
			die("bind");
		if (type == SOCK_STREAM && listen(c[i].receiver, 128))
			die("listen");
		c[i].sender = type == SOCK_DGRAM ? socket(AF_INET, type | SOCK_CLOEXEC, 0)
						 : open(netns, O_RDONLY | O_CLOEXEC);
		if (type == SOCK_DGRAM && connect(c[i].sender, (void *)&c[i].address, sizeof(c[i].address)))
			die("connect");
		c[i].ns = calloc(rounds, sizeof(double));
		if (type == SOCK_STREAM) {
			int fd = open(strcat(strcpy(payload, cgroup), "/cgroup.procs"), O_WRONLY | O_CLOEXEC);

			if (fd < 0)
				die("cgroup");
			c[i].address.sin_zero[0] =
				fd; /* written before each turn: sockets belong to their maker's cgroup */
		}
	}
	return n;
}

static void turn_udp(struct config *c, int count, int size)
{
	static char buffers[BATCH][2048];
	struct mmsghdr out[BATCH], in[BATCH];
	struct iovec out_vectors[BATCH], in_vectors[BATCH];

	fill(out, out_vectors, payload, 0, size);
	fill(in, in_vectors, buffers[0], sizeof(buffers[0]), sizeof(buffers[0]));
	for (int k = 0; k < count; k += BATCH)
		if (sendmmsg(c->sender, out, BATCH, 0) < 0)
			die("sendmmsg");
	while (recvmmsg(c->receiver, in, BATCH, MSG_DONTWAIT, 0) > 0)
		;
}

static void turn_tcp(struct config *c, int count)
{
	struct linger reset = {1, 0};

	for (int k = 0; k < count; k++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), peer;

		if (connect(fd, (void *)&c->address, sizeof(c->address)))
			die("connect");
		peer = accept(c->receiver, 0, 0);
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset,
			   sizeof(reset)); /* no TIME_WAIT: it would fill the ports */
		close(fd);
		close(peer);
	}
}

static void become(struct config *c)
{
	int fd = c->address.sin_zero[0];

	if (setns(c->sender, CLONE_NEWNET) || write(fd, "0", 1) != 1)
		die("turn");
}

static int interleave(char **a, int n, int type)
{
	int cpu = atoi(a[0]), rounds = atoi(a[1]), count = atoi(a[2]), size = type == SOCK_DGRAM ? atoi(a[3]) : 0;
	struct config c[32];

	parse(n, a + (type == SOCK_DGRAM ? 4 : 3), c, rounds, type);
	pin(cpu);
	for (int r = -3; r < rounds; r++)
		for (int q = 0; q < n; q++) {
			struct config *mine = &c[r & 1 ? n - 1 - q : q];
			double begin;

			if (type == SOCK_STREAM)
				become(mine);
			begin = now();
			if (type == SOCK_DGRAM)
				turn_udp(mine, count, size);
			else
				turn_tcp(mine, count);
			if (r >= 0)
				mine->ns[r] = (now() - begin) / count;
		}
	for (int i = 0; i < n; i++) {
		printf("%s", c[i].name);
		for (int r = 0; r < rounds; r++)
			printf(" %.1f", c[i].ns[r]);
		printf("\n");
	}
	return 0;
}

int main(int count, char **a)
{
	if (count == 7 && !strcmp(a[1], "udp"))
		return udp(a + 2);
	if (count > 6 && !strcmp(a[1], "slice"))
		return interleave(a + 2, count - 6, SOCK_DGRAM);
	if (count > 5 && !strcmp(a[1], "connect"))
		return interleave(a + 2, count - 5, SOCK_STREAM);
	fprintf(stderr, "see the top of net_traffic.c\n");
	return 2;
}

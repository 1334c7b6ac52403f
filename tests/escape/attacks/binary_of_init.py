"""Writing the program that runs as PID 1 (CVE-2019-5736)."""

from tests.escape.attack import Attack
from tests.escape.victims import copied_program

ATTACK = Attack(
    what="writing the program that runs as PID 1 (CVE-2019-5736)",
    program='attempt(lambda: os.close(os.open(sys.argv[1] if os.getpid() > 9 else "/proc/1/exe", os.O_WRONLY)))',
    refused=("EACCES", "EPERM", "EROFS", "ETXTBSY"),
    host=copied_program,
)

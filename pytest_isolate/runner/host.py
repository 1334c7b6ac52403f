"""What this host can do for this run: one backend per policy, found by trying, and what happens where it cannot.

Owns: the answer to --isolate-missing, and the sentence of the header that says what is on.
Refuses: to weaken a policy without saying so.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pytest_isolate.backend import Backend, Kind
from pytest_isolate.errors import BackendUnavailable, IsolateError, PolicyError
from pytest_isolate.groups import Groups
from pytest_isolate.hooks import of_this_process
from pytest_isolate.kernel import standard
from pytest_isolate.kernel.filesystem import for_tests
from pytest_isolate.networks import Networks
from pytest_isolate.policy import Namespace, Policy
from pytest_isolate.profile import MINIMAL
from pytest_isolate.registry import candidates
from pytest_isolate.runner import compat, trial
from pytest_isolate.runner.settings import Resolver, Settings

_NOT_SHARED = "this plugin does not share out GPUs between tests"
_SHARE_YOURSELF = (
    "leave it out, set CUDA_VISIBLE_DEVICES in a fixture, and keep the tests that need one device on one xdist worker "
    "(xdist_group)"
)


class Host:
    """Chooses once for each distinct settings value; remembers what was given up."""

    def __init__(self, config: pytest.Config, resolver: Resolver) -> None:
        standard.hold()
        self._config = config
        self._resolver = resolver
        self._admitted: dict[int, Settings] = {}
        self._backends: dict[int, list[Backend]] = {}
        self.hooks = of_this_process()
        self._refused: dict[int, str] = {}
        self.notes: list[str] = []
        self.groups = Groups(
            mode=resolver.cgroup_mode,
            run_id=getattr(config, "workerinput", {}).get("workerid", "main"),
            account=resolver.accounts,
        )
        self.networks = Networks(self.groups, front_end=resolver.bpf_front_end)

    def check(self, settings: Settings, where: str = "") -> str:
        """Find a backend; return why not, with --isolate-missing=skip, or an empty string.

        Raises:
            pytest.UsageError: --isolate-missing=error, and no backend enforces the policy; or it is one that nothing can,
                and ``where`` says who asked for it.
        """
        if id(settings) in self._admitted:
            return ""
        if id(settings) in self._refused:
            return self._refused[id(settings)]
        try:
            self._share_out(settings)
            settled = self._networked(settings, self._with_places(self._settled(settings)))
            given = settings if settled is settings.policy else replace(settings, policy=settled)
            found = candidates(settled, settings.backends, kind=kind_of(settings), hooks=self.hooks)
            if settings.mode == "fork":
                self.groups.check_room(settled, found[0])
                trial.check(self._config, settled, found[0])
            self._take(settings, given, found)
        except BackendUnavailable as error:
            return self._missing(settings, error)
        except PolicyError as error:
            raise pytest.UsageError(f"pytest-isolate: {f'{where}: ' if where else ''}{error}") from error
        except IsolateError as error:
            raise pytest.UsageError(f"pytest-isolate: {error}") from error
        return ""

    def _share_out(self, settings: Settings) -> None:
        """The marker's resources=, which another plugin of this name shares out between tests, and we do not.

        Raises:
            BackendUnavailable: some are asked for, and --isolate-missing does not say to go on with less.
        """
        if not settings.resources:
            return
        what = f"marker isolate resources={', '.join(settings.resources)}"
        if settings.missing != "warn":
            raise BackendUnavailable(what, _NOT_SHARED, _SHARE_YOURSELF)
        self._give_up(f"{what}: {_NOT_SHARED}")

    def _give_up(self, text: str) -> None:
        self._note(f"DEGRADED {text}")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _settled(self, settings: Settings) -> Policy:
        """The policy with its group limits tried; with --isolate-missing=warn less those that nothing here holds."""
        try:
            return self.groups.settle(settings.policy)
        except BackendUnavailable:
            if settings.missing != "warn":
                raise
        weaker, given_up = self.groups.held(settings.policy)
        for text in given_up:
            self._give_up(text)
        return self.groups.settle(weaker)

    def _networked(self, settings: Settings, policy: Policy) -> Policy:
        """The policy whose network is held by eBPF, else by the best of what there is instead, which is said."""

        def fits(other: Policy) -> None:
            candidates(other, settings.backends, kind=kind_of(settings), hooks=self.hooks)

        tier = self.networks.settle(policy, fits, less=settings.missing == "warn")
        if tier is None:
            return policy
        text = f"network held without eBPF, by {tier}"
        self._note(text) if tier.whole else self._give_up(text)
        return tier.policy

    def _with_places(self, policy: Policy) -> Policy:
        """A read-only view keeps what tests write to: HOME and the working copy as overlays, the base temp directory."""
        if policy.filesystem.root != "readonly":
            return policy
        view = for_tests(
            policy.filesystem,
            home=os.path.expanduser("~"),
            working_copy=str(self._config.rootpath),
            writable=[compat.base_temp(self._config)],
            readable=[os.getcwd(), sys.prefix, sys.base_prefix, *filter(None, sys.path), *_loaded_from()],
        )
        return replace(policy, filesystem=view)

    def _take(self, asked: Settings, given: Settings, found: list[Backend]) -> None:
        self._admitted[id(asked)] = given
        self._backends[id(given)] = (
            found  # of the settings: others with the same policy may name another backend, or kind
        )

    def _missing(self, settings: Settings, error: BackendUnavailable) -> str:
        match settings.missing:
            case "skip":
                self._refused[id(settings)] = str(error)
                return str(error)
            case "warn":
                kept = self._best_tier(settings)
                best = error.why.partition(" | ")[0]  # what keeps the best backend from it; `doctor --explain` has all
                raising = "`pytest-isolate doctor --ci` says what would raise it"
                self._give_up(f"{settings.profile} -> {kept}, because {best}; {raising}")
                return ""
        raise pytest.UsageError(f"pytest-isolate: {error}") from error

    def _best_tier(self, settings: Settings) -> str:
        """Take the first of tiers() that can be had; in words, what was kept."""
        policy = self._settled(settings)
        for tier, words in tiers(policy, settings.profile):
            with contextlib.suppress(BackendUnavailable):
                found = candidates(tier, settings.backends, kind=kind_of(settings), hooks=self.hooks)
                self._take(settings, replace(settings, policy=tier), found)
                return words
        raise BackendUnavailable("the profile minimal", "no backend can enforce even that here", "see `doctor`")

    def admitted(self, settings: Settings) -> Settings:
        """What is enforced for ``settings``: the same value, unless --isolate-missing=warn gave something up."""
        self.check(settings)
        return self._admitted[id(settings)]

    def backends_of(self, settings: Settings) -> str:
        """For the header: the name of the backend, or of all that a plugin will select from."""
        return " or ".join(_described(backend, settings.policy) for backend in self._backends[id(settings)])

    def backend(self, settings: Settings, item: pytest.Item | None = None) -> Backend:
        """The backend of admitted settings; where a plugin chooses, its choice for ``item``. Raises PluginError."""
        return self.hooks.select(item, settings.policy, self._backends[id(settings)])


def _loaded_from() -> Iterator[str]:
    """Where what is imported lies: an editable installation may be found by a hook, and then no sys.path leads to it."""
    for name, module in list(sys.modules.items()):
        if "." not in name and module is not None:
            places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
            yield from filter(None, places)


def _described(backend: Backend, policy: Policy) -> str:
    """Its name, and what it enforces unasked."""
    adds = getattr(backend, "adds", None)
    added = "" if adds is None else adds(policy)
    return f"{backend.name} (adds: {added})" if added else backend.name


def kind_of(settings: Settings) -> Kind:
    """What a backend has to start for these settings."""
    return "fresh" if settings.mode == "fresh" else "tests"


def tiers(policy: Policy, profile: str) -> Iterator[tuple[Policy, str]]:
    """What is left of a policy that cannot be had whole, best first, each with its name.

    AppArmor (Ubuntu 24.04) and some containers let namespaces be made and refuse every mount in them.
    """
    if policy.namespaces - {Namespace.MOUNT} and policy.namespaces & {Namespace.MOUNT}:
        namespaces = policy.namespaces - {Namespace.MOUNT}
        yield replace(policy, namespaces=namespaces, filesystem=MINIMAL.filesystem), f"{profile} without its mounts"
    without = without_namespaces(policy)
    if policy.hardening != without.hardening:
        yield replace(without, hardening=policy.hardening), "minimal with its hardening"
    yield without, "minimal"


def without_namespaces(policy: Policy) -> Policy:
    """What is left of a policy where there are no namespaces: session, limits, time."""
    return replace(
        MINIMAL,
        limits=policy.limits,
        timeout_s=policy.timeout_s,
        grace_s=policy.grace_s,
        session=policy.session,
    )

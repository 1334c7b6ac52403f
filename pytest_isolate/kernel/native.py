from dataclasses import dataclass
from typing import Any
@dataclass(frozen=True, slots=True)
class Exited:
    status: Any
    rusage: Any
    leftovers: bool

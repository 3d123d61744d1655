"""The GPU's clocks while it is timed, as nvidia-smi samples them beside the run, and whether it was held back."""

import shutil
import subprocess
import threading
from dataclasses import dataclass
from datetime import datetime
from statistics import median

FIELDS = ("timestamp", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # of drivers since 535, and before
SLOWEST = 20.0  # seconds that an answer may take
PERIOD = 0.4  # seconds from one answer to the next question
# The reasons, of NVML's nvmlClocksEventReasons, for which a GPU runs slower than it could.
HELD_BACK = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal, by software", 0x40: "thermal, by hardware",
    0x80: "power brake",
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """At one moment: MHz, degrees Celsius, watts, and a mask of reasons for the clocks."""

    time: float
    sm: float
    memory: float
    temperature: float
    power: float
    reasons: int


@dataclass(frozen=True)
class Clocks:
    """During one row: lowest, median and highest clock of the SMs, median of the others, what held it back."""

    samples: int
    sm: tuple[float, float, float]
    memory: float
    temperature: float
    power: float
    held_back: tuple[str, ...]

    def __str__(self) -> str:
        """One line of a report."""
        low, middle, high = self.sm
        held = f"; HELD BACK: {', '.join(self.held_back)}" if self.held_back else "; not held back"
        return (
            f"SM {middle:.0f} MHz [{low:.0f}-{high:.0f}], memory {self.memory:.0f} MHz, {self.temperature:.0f} C, "
            f"{self.power:.0f} W{held}"
        )


def parse(line: str) -> Sample | None:
    """A line of nvidia-smi's; None where it is cut off, or says [N/A] of what is needed."""
    try:
        when, sm, memory, temperature, power, reasons = line.split(", ")
        at = datetime.strptime(when.strip(), "%Y/%m/%d %H:%M:%S.%f").timestamp()
        return Sample(at, float(sm), float(memory), float(temperature), float(power), int(reasons, 16))
    except ValueError:
        return None


def between(samples: list[Sample], began: float, ended: float) -> Clocks | None:
    """What the samples of that time say; those of a period before and after where it was shorter than one."""
    slack = 2 * PERIOD
    those = [one for one in samples if began <= one.time <= ended]
    those = those or [one for one in samples if began - slack <= one.time <= ended + slack]
    if not those:
        return None
    sm = [one.sm for one in those]
    mask = 0
    for one in those:
        mask |= one.reasons
    return Clocks(
        samples=len(those),
        sm=(min(sm), median(sm), max(sm)),
        memory=median(one.memory for one in those),
        temperature=median(one.temperature for one in those),
        power=median(one.power for one in those),
        held_back=tuple(reason for bit, reason in HELD_BACK.items() if mask & bit),
    )


class Sampler:
    """Asks nvidia-smi again and again beside what is timed; ``why_not`` says why there are no samples."""

    def __init__(self, uuid: str | None) -> None:
        self.samples: list[Sample] = []
        program = shutil.which("nvidia-smi")
        self.why_not = "" if program and uuid else "nvidia-smi is not there" if uuid else "there is no GPU to ask"
        self._command = [str(program), f"--id={uuid}", "--format=csv,noheader,nounits"]
        self._reasons = list(REASONS)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if not self.why_not:
            self._thread.start()

    def _sample(self) -> None:
        while self._reasons and not self._over.wait(PERIOD):
            query = f"--query-gpu={','.join((*FIELDS, self._reasons[0]))}"
            try:
                command = [*self._command, query]
                said = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SLOWEST
                ).stdout
            except (OSError, subprocess.TimeoutExpired) as error:
                self.why_not = str(error)
                return
            if sample := parse(said):
                self.samples.append(sample)
                self.why_not = ""
            elif not self.samples:  # an older one has the older name
                self.why_not = f"nvidia-smi: {said.strip()}"
                self._reasons.pop(0)

    def during(self, began: float, ended: float) -> Clocks | None:
        """What the clocks were then."""
        return between(self.samples, began, ended)

    def close(self) -> None:
        """Asks no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

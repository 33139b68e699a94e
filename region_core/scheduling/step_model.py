"""How long a step takes, learnt from the steps themselves.

    seconds = fixed + per_sequence * sequences that decode + per_token * input tokens

A least-squares fit over the last few dozen steps, fading; memory is nine numbers. No part is ever
negative. Where the steps do not tell two parts apart (a full batch never changes its size), the fit
keeps what it knew and moves as little as explains what it sees. One step that hangs counts as three
times what was expected of it at most; an engine that has become slower is followed all the same.
"""

from __future__ import annotations

KNOWN = 8  # steps, before the model says anything
_FADES = 0.97  # what a step counts for after the next one
_FADES_FAST = 0.8  # while steps are all longer, or all shorter, than expected
_DRIFTS = 1.3  # times as long, in the mean
_DRIFT_WEIGHT = 1 / 8
_REFITS = 2  # steps between fits
_SWEEPS = 6
_OUTLIER = 3.0
_SLACK_S = 0.005
_LEAST_S = 0.0005
_SCALES = (1.0, 1 / 8, 1 / 128)  # of the three inputs, so that they are of one size


class StepModel:
    """Pure, and O(1) a step."""

    __slots__ = ("_cross", "_drift", "_parts", "_seen", "_target")

    def __init__(self) -> None:
        self._seen = 0
        self._drift = 1.0  # how long steps take lately, by what was expected
        self._parts = [0.0, 0.0, 0.0]
        self._cross = [[0.0] * 3 for _ in range(3)]
        self._target = [0.0, 0.0, 0.0]

    @property
    def known(self) -> bool:
        return self._seen >= KNOWN

    @property
    def token_s(self) -> float:
        """What one token of input adds to a step."""
        return self._parts[2] * _SCALES[2]

    def seconds(self, sequences: float, tokens: float = 0.0) -> float:
        """How long such a step takes; 0 as long as nothing is known."""
        fixed, per_sequence, per_token = self._parts
        return fixed + per_sequence * sequences * _SCALES[1] + per_token * tokens * _SCALES[2]

    def stepped(self, sequences: int, tokens: int, took_s: float) -> None:
        """A step ended well."""
        usual_s = took_s
        if self.known:
            usual_s = self.seconds(sequences, tokens)
            took_s = min(took_s, _OUTLIER * usual_s + _SLACK_S)
            drift = min(_OUTLIER, took_s / max(usual_s, 1e-9))
            self._drift += _DRIFT_WEIGHT * (drift - self._drift)
        fades = _FADES if 1 / _DRIFTS < self._drift < _DRIFTS else _FADES_FAST
        # Errors count by their share of the step: else long ones, of much input, drown the others.
        weight = max(usual_s, _LEAST_S) ** -2
        row = (1.0, sequences * _SCALES[1], tokens * _SCALES[2])
        for i, value in enumerate(row):
            weighted = value * weight
            self._target[i] = self._target[i] * fades + weighted * took_s
            line = self._cross[i]
            for j, other in enumerate(row):
                line[j] = line[j] * fades + weighted * other
        self._seen += 1
        if self._seen % _REFITS == 0:
            self._fit()

    def _fit(self) -> None:
        """Coordinate descent from where the parts are: what is not told apart stays."""
        parts, cross, target = self._parts, self._cross, self._target
        for _ in range(_SWEEPS):
            for i in range(3):
                line = cross[i]
                if line[i] > 1e-9:
                    rest = target[i] - sum(line[j] * parts[j] for j in range(3) if j != i)
                    parts[i] = max(0.0, rest / line[i])

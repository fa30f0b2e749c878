"""The drop-in scheduler: `pipe.scheduler = EIScheduler.from_config(pipe.scheduler.config, plan="unipc2")`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffusion import schedules
from diffusion.samplers.adjustments import compensation_weights, langevin, matched_time, thresholded
from diffusion.samplers.coefficients import Move, Node, even_move, move
from diffusion.samplers.nodes import CLEAN, base_nodes, grid_nodes, make_base, node_at
from diffusion.samplers.plan import Plan, to_plan
from splat.errors import InputError, StoppedLate


class Call(NamedTuple):
    """One network call: what its prediction is for, in which step, at which node."""

    role: str  # "langevin", "predict" or "correct"
    step: int
    node: int


class Known(NamedTuple):
    """A prediction kept for the polynomial."""

    data: Tensor
    noise: Tensor
    node: Node


class Taken(NamedTuple):
    """The last step, as a corrector needs it to do it again."""

    start: Tensor
    step: int
    history: tuple[Known, ...]
    randomness: Tensor | float


class EIScheduler(SchedulerMixin, ConfigMixin):
    """Exponential-integrator sampling of VP, VE, EDM and flow networks under a per-step plan (see `plan.Step`).

    `from_config` accepts the config of any diffusers scheduler in `schedules.BASES` and keeps its grid, its coordinates and its
    clipping; `grid` then overrides the grid alone. Without one, `schedule` and the beta fields define the noise, and `grid` the
    nodes: `final_sigmas_type` "zero" adds a last step to clean data, "sigma_min" stops at the grid's end. `plan` is a preset's
    name or `Plan.to_dict()`.
    Arithmetic is float32 for half-precision samples, else the sample's; coefficients are float64.
    """

    _compatibles: list[str] = []  # noqa: RUF012 (the mixin's own form)

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        schedule: str = "vp",  # vp, ve, edm or flow; a base decides it itself
        sigma_min: float | None = None,  # edm
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        plan: Any = "unipc2",
        base: str | None = None,  # the diffusers class whose grid is used
        grid: str | None = None,  # one of schedules.GRIDS; None: the base's own, or log_snr without a base
        log_snr_start: float | None = None,
        log_snr_end: float | None = None,
        final_sigmas_type: str = "zero",
        lower_order_final: bool = False,  # order falls to 1 at the end of fewer than 15 steps, as in diffusers
        thresholding: bool = False,  # dynamic thresholding of the x_0 prediction (Imagen); pixels, not latents
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        data_variance: float | None = None,  # of the training data; the variance-matched time shift needs it
        statistics: str | None = None,  # safetensors file of DPM-Solver-v3 statistics
    ):
        if prediction_type not in schedules.PREDICTION_TYPES:
            raise InputError(
                f"Unknown prediction type {prediction_type!r}; use one of {', '.join(schedules.PREDICTION_TYPES)}."
            )
        if schedule not in ("vp", "ve", "edm", "flow") or final_sigmas_type not in ("zero", "sigma_min"):
            raise InputError(
                f"schedule {schedule!r} must be vp, ve, edm or flow, final_sigmas_type {final_sigmas_type!r} zero or sigma_min."
            )
        if base is not None and base not in schedules.BASES:
            raise InputError(f"No grid is known for {base}; use one of {', '.join(sorted(schedules.BASES))}.")
        self.plan = to_plan(plan)
        if isinstance(plan, Plan):
            self.register_to_config(plan=plan.to_dict())
        self.statistics = None
        self._mean: Tensor | None = None
        self._schedule: schedules.Schedule | None = None
        self._base: SchedulerMixin | None = None
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._nodes: list[Node] = []
        self._calls: list[Call] = []
        self._forget()

    # ---- configuration ----------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, base: str | None = None, **kwargs):
        """Of an EIScheduler's or any diffusers scheduler's config; keyword arguments override fields.

        `base` names the diffusers class where the config's keys fit several. Keys that only the base reads stay in the config
        and may be overridden too (`use_karras_sigmas=True`); raises InputError for keywords that nothing reads.
        """
        flat = {k: v for k, v in config.items() if not k.startswith("_")}
        if "plan" not in flat:
            flat["base"] = schedules.recognise(config, base)
            if flat.get("invert_sigmas") or flat.get("prediction_type") == "score":
                raise InputError("Schedulers with inverted sigmas or score predictions are not supported; use their own class.")
            flat.setdefault("prediction_type", "epsilon")
            if schedules.BASES[flat["base"]][1] == "flow":
                flat["prediction_type"] = "flow_prediction"
        if isinstance(kwargs.get("plan"), Plan):
            kwargs["plan"] = kwargs["plan"].to_dict()
        expected = set(inspect.signature(cls.__init__).parameters)
        if flat.get("base") and not return_unused_kwargs:  # use_karras_sigmas= and the like are the base's
            theirs = set(inspect.signature(getattr(diffusers, schedules.BASES[flat["base"]][0]).__init__).parameters)
            flat.update({k: kwargs.pop(k) for k in set(kwargs) & (theirs - expected)})
        if set(kwargs) - expected and not return_unused_kwargs:
            raise InputError(f"No scheduler reads {', '.join(sorted(set(kwargs) - expected))}; check the spelling.")
        own = {k: v for k, v in flat.items() if k in expected}
        scheduler, unused = super().from_config(own, return_unused_kwargs=True, **kwargs)
        scheduler.register_to_config(**{k: v for k, v in flat.items() if k not in expected})
        return (scheduler, unused) if return_unused_kwargs else scheduler

    @property
    def schedule(self) -> schedules.Schedule:
        """The noise schedule of the network."""
        if self._schedule is None:
            c = self.config
            if c.base:
                self._schedule = schedules.from_diffusers(c, c.base)
            elif c.schedule == "flow":
                self._schedule = schedules.flow(c.num_train_timesteps)
            elif c.schedule == "edm":
                given = {k: c[k] for k in ("sigma_min", "sigma_max", "sigma_data") if c[k] is not None}
                self._schedule = schedules.edm(**given)
            else:
                betas = (c.beta_schedule, c.beta_start, c.beta_end, c.num_train_timesteps, c.trained_betas)
                self._schedule = schedules.vp(*betas, kind=c.schedule)
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: schedules.Schedule) -> None:
        """Another schedule than the config's, for searches and tests; it is not saved."""
        self._schedule = schedule

    @property
    def order(self) -> int:
        """Network calls per step where all steps have as many (2: Heun or Langevin), as diffusers pipelines count them."""
        calls = {step.calls for step in self.plan.steps}
        return calls.pop() if len(calls) == 1 else 1

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise."""
        if self.schedule.kind in ("vp", "flow"):
            return 1.0
        if self.config.base and self.config.grid is None:
            return float((self._base or make_base(self.config)).init_noise_sigma)
        if self._calls:
            return math.hypot(self._nodes[0].sigma, 1.0)
        return math.exp(-self.schedule.log_snr_range[0])

    @property
    def sigmas(self) -> Tensor:
        """What diffusers calls sigma at every node [steps + 1]: sigma/alpha, or a flow's time; some pipelines read it."""
        return torch.tensor(
            [n.sigma if self.schedule.kind == "flow" or n.sigma == 0 else n.sigma / n.alpha for n in self._nodes]
        )

    def set_mean(self, mean: Tensor | None) -> None:
        """The mean mu [as one sample, or the batch] of mean-reverting diffusion x_t = a x_0 + (1 - a) mu + s n (MRS).

        It is for the next run alone, and gone after the last call: the next picture has another mean.
        """
        if mean is not None and not self.plan.needs_mean:
            raise InputError("This plan is not mean-reverting; use plan='mr', or a plan with needs_mean=True.")
        self._mean = mean

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # ---- grid -------------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Lay out nodes, plan and calls; `timesteps`, `sigmas` and `mu` (a flow's shift) go to the base scheduler.

        A plan that names its nodes keeps them: of `timesteps` or `sigmas` it takes only the number. So does `grid` of the
        sigmas 1, 1 - 1/n, ..., 1/n, in which Flux-like pipelines say that they want n steps; others are an error there.
        """
        custom = {k: v for k, v in {"timesteps": timesteps, "sigmas": sigmas, "mu": mu}.items() if v is not None}
        if num_inference_steps is None and not ("timesteps" in custom or "sigmas" in custom):
            raise InputError("Say how many sampling steps to take: set_timesteps(10).")
        if num_inference_steps is not None and (not isinstance(num_inference_steps, Integral) or num_inference_steps < 1):
            raise InputError(f"{num_inference_steps!r} sampling steps asked for; ask for a whole number, at least one.")
        self._base = make_base(self.config) if self.config.base and self.config.grid is None else None
        if self.plan.steps[0].node is not None:
            steps = num_inference_steps or len(sigmas if timesteps is None else timesteps)
            self._nodes = [node_at(self.schedule, step.node) for step in self.plan.for_steps(steps)]
            self._nodes.append(CLEAN if self.plan.end is None else node_at(self.schedule, self.plan.end))
            integer_times = False
        elif self._base is not None:
            self._nodes, integer_times = base_nodes(self._base, self.schedule, num_inference_steps, custom)
        else:
            steps, integer_times = num_inference_steps or len(sigmas if timesteps is None else timesteps), False
            plain = sigmas is None or np.allclose(sigmas, 1 - np.arange(len(sigmas)) / len(sigmas), atol=1e-6)
            if timesteps is not None or not plain:
                raise InputError("Custom timesteps or sigmas need a base scheduler's own grid; use from_config without grid=.")
            self._nodes = grid_nodes(self.schedule, self.config, steps)
        # the last may repeat: with set_alpha_to_one=False, DDIM and PNDM end where their last call is
        if any(b.sigma * a.alpha >= a.sigma * b.alpha for a, b in zip(self._nodes[:-1], self._nodes[1:-1])):
            raise InputError(f"{len(self._nodes) - 1} steps on this grid hold the same noise level twice; ask for fewer.")
        self._steps = self.plan.for_steps(len(self._nodes) - 1)
        self._check()
        self._calls = []
        for i, step in enumerate(self._steps):
            self._calls += [Call("langevin", i, i)] * (step.langevin > 0) + [Call("predict", i, i)]
            if step.corrector == "fresh" and self._nodes[i + 1].sigma > 0:
                self._calls.append(Call("correct", i, i + 1))
        times = [self._nodes[call.node].time for call in self._calls]
        self.timesteps = torch.tensor(times, dtype=torch.int64 if integer_times else torch.float32, device=device)
        self.num_inference_steps = len(self._steps)
        self._forget()
        self._moves = {(i, n): self._move(i, n) for i in range(len(self._steps)) for n in range(1, min(i + 1, 4) + 1)}
        self._corrections = {key: self._move(*key, correct=True) for key in self._moves}

    def _check(self) -> None:
        first = self._nodes[0]
        if first.alpha == 0 and self.config.prediction_type == "epsilon":
            raise InputError("The grid starts at pure noise, where predicted noise says nothing of the data; use v_prediction.")
        if self.plan.needs_mean and self._mean is None:
            raise InputError("A mean-reverting plan needs its mean; call set_mean(mu) before set_timesteps.")
        if self._mean is not None and self.config.prediction_type not in ("epsilon", "sample"):
            raise InputError("Mean-reverting sampling is defined for epsilon and sample predictions; set prediction_type.")
        if any(step.kind == "v3" for step in self._steps) and self.statistics is None:
            if not self.config.statistics:
                raise InputError("Kind 'v3' needs statistics of the network; estimate_statistics(...) measures them.")
            from diffusion.samplers.statistics import Statistics

            self.statistics = Statistics.load(self.config.statistics)
        if any(step.shift_window for step in self._steps):
            variance = self.config.data_variance
            if self.schedule.kind != "vp" or variance is None:
                raise InputError("The variance-matched time shift needs a VP schedule and data_variance= of the training data.")
            if 0.8 <= variance <= 1.2:
                raise InputError(
                    f"The data's variance is {variance:.2f}: near 1 a sample's variance is the same at every noise level and "
                    "says nothing about time; turn the time shift off (shift_window=0)."
                )

    # ---- coefficients -----------------------------------------------------------------------------------------------

    def _move(self, i: int, kept: int, correct: bool = False) -> Move | None:
        """Coefficients of step i when `kept` predictions up to node i are there; of its corrector, or None without one."""
        step, r, t = self._steps[i], self._nodes[i], self._nodes[i + 1]
        logarithmic = step.kind != "flow"
        order = min(step.order, kept)
        if self.config.lower_order_final and len(self._steps) < 15:
            order = min(order, len(self._steps) - i)
        if t.log_snr == r.log_snr:
            return None if correct else move("data", r, t, [r])
        known = [self._nodes[i - j] for j in range(order)]
        if logarithmic:  # a polynomial in lambda has no node at infinity
            known = [node for node in known if not math.isinf(node.log_snr)] or known[:1]
        if correct:
            if step.corrector == "none" or t.sigma == 0 or (logarithmic and math.isinf(r.log_snr)):
                return None
            known = [t, *known]
        elif step.churn and t.sigma > 0:
            t = node_at(self.schedule, t.log_snr + step.churn)
        if logarithmic and math.isinf(t.log_snr - r.log_snr):
            return move("data", r, t, known[:1], step.eta)
        if step.even:
            return even_move(r, t, len(known), step.momentum)
        if step.kind == "v3":
            return self.statistics.move(r, t, known)
        return move(step.kind, r, t, known, step.eta)

    # ---- stepping ---------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._history: tuple[Known, ...] = ()
        self._taken: Taken | None = None
        self._velocity: Tensor | None = None
        self.shifted_time: Tensor | None = None  # [B], what each sample's variance says of the next call's time

    @property
    def step_index(self) -> int | None:
        """Index of the next call in `timesteps`; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Where an image-to-image pipeline starts."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this call of `timesteps`."""
        self._begin_index = begin_index

    def current_node(self, timestep: float | Tensor | None = None) -> Node:
        """The noise level of the next call."""
        if self._step_index is None and (self._begin_index is not None or torch.compiler.is_compiling()):
            self._step_index = self._begin_index or 0  # a search by value has no place in a compiled graph
        elif self._step_index is None:
            self._step_index = self._find(timestep)
        if not 0 <= self._step_index < len(self._calls):
            raise InputError(f"All {len(self._calls)} calls of this plan are done, or set_timesteps was not called; call it.")
        return self._nodes[self._calls[self._step_index].node]

    def _find(self, timestep: float | Tensor | None) -> int:
        if timestep is None:
            return 0
        if not self._calls:
            raise InputError("set_timesteps was not called; call it before the first step.")
        equal = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps).flatten()[0]).tolist()
        matches = [i for i, same in enumerate(equal) if same and self._calls[i].role != "correct"]  # no step is open yet
        if not matches:
            raise InputError(
                f"Timestep {float(timestep):g} is none of this plan's {len(self.timesteps)}; use scheduler.timesteps."
            )
        return matches[0]

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The network's input: the sample for VP and flow; over sqrt(sigma^2 + 1) for VE, sqrt(sigma^2 + data^2) for EDM."""
        if self.schedule.kind in ("vp", "flow"):
            return sample
        data = 1.0 if self.schedule.kind == "ve" else self.schedule.sigma_data
        return sample / math.hypot(self.current_node(timestep).sigma, data)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma n at any training timesteps [B]."""
        alpha, sigma = self.schedule.alpha_sigma(self.schedule.log_snr(timesteps.detach().cpu().double().numpy()))
        shape = (-1,) + (1,) * (original_samples.ndim - 1)
        alpha, sigma = (torch.as_tensor(v).to(original_samples).reshape(shape) for v in (alpha, sigma))
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name that flow pipelines use."""
        return self.add_noise(sample, noise, torch.as_tensor(timestep).reshape(-1))

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor | None,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The sample at the next call's node, from the network's raw prediction at this one; both of any shape [B, ...].

        Raises `StoppedLate` for predictions that are not finite (not under torch.compile, where that check would break the
        graph). `timestep` only finds the place to start; afterwards calls are counted.
        """
        node = self.current_node(timestep)
        call = self._calls[self._step_index]
        if call.role == "correct" and self._taken is None:
            raise InputError(
                f"Call {self._step_index + 1} of {len(self._calls)} corrects a step that was not taken; start at one that does "
                "not, or use a plan whose steps all have as many calls."
            )
        if str(self.config.get("variance_type")).startswith("learned") and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]  # the rest is the ancestral sampler's variance
        if model_output.shape != sample.shape:
            raise InputError(
                f"The prediction has shape {tuple(model_output.shape)} and the sample {tuple(sample.shape)}; they must agree."
            )
        if not torch.compiler.is_compiling() and not bool(model_output.isfinite().all()):
            bad = model_output.numel() - int(model_output.isfinite().sum())
            raise StoppedLate(
                f"The network's prediction in call {self._step_index + 1} of {len(self._calls)} (timestep {node.time:g}) has "
                f"{bad} of {model_output.numel()} values that are NaN or infinite; run it in float32 or bfloat16, or lower the "
                "guidance."
            )
        dtype = torch.promote_types(sample.dtype, torch.float32)
        x = sample.to(dtype)
        mean = None if self._mean is None else self._mean.to(x)
        if mean is not None:  # mean-reverting diffusion is the ordinary one of x - mu
            x = x - mean
        data, noise = self._data_and_noise(model_output.to(dtype), x, node, mean)
        if call.role == "langevin":
            x = langevin(x, noise / -node.sigma, self._steps[call.step].langevin, generator)
        elif call.role == "correct":
            x = self._corrected(x, Known(data, noise, node))
        else:
            x = self._predicted(x, Known(data, noise, node), call.step, generator)
        self._step_index += 1
        if call.role == "predict" and self._steps[call.step].shift_window:
            self._shift_time(x, self._steps[call.step].shift_window)
        if mean is not None:
            x = x + mean
        if self._step_index == len(self._calls):
            self._mean = None
        x = x.to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _data_and_noise(self, prediction: Tensor, x: Tensor, node: Node, mean: Tensor | None) -> tuple[Tensor, Tensor]:
        c, alpha, sigma = self.config, node.alpha, node.sigma
        if self.schedule.kind == "edm" and c.prediction_type in ("epsilon", "v_prediction"):
            # c_skip x + c_out F of the network's output F, Karras et al. 2022, table 1; v_prediction is -F
            norm = math.hypot(sigma, self.schedule.sigma_data)
            sign = -1.0 if c.prediction_type == "v_prediction" else 1.0
            data = (self.schedule.sigma_data / norm) ** 2 * x + sign * sigma * self.schedule.sigma_data / norm * prediction
            noise = (x - data) / sigma
        else:
            if mean is not None and c.prediction_type == "sample":
                prediction = prediction - mean
            data, noise = schedules.to_data_and_noise(prediction, x, alpha, sigma, c.prediction_type)
        if c.thresholding or c.clip_sample:
            shift = 0.0 if mean is None else mean
            data = self._clipped(data + shift) - shift
            noise = (x - alpha * data) / sigma
        return data, noise

    def _clipped(self, data: Tensor) -> Tensor:
        if self.config.thresholding:
            return thresholded(data, self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
        return data.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)

    def _corrected(self, x: Tensor, new: Known) -> Tensor:
        """The last step done again with the prediction at its end (UniPC's corrector), or x where it has none."""
        start, i, history, randomness = self._taken
        correction = self._corrections[i, len(history)]
        if correction is None:
            return x
        return _on(correction.keep, start) * start + _drift(correction, (new, *history)) + randomness

    def _predicted(self, x: Tensor, new: Known, i: int, generator: Any) -> Tensor:
        step = self._steps[i]
        if self._taken is not None and self._steps[self._taken.step].corrector == "reuse":
            x = self._corrected(x, new)
        if step.momentum < 1 and step.momentum_on == "history" and self._history:
            before = self._history[0].noise
            new = new._replace(noise=before + step.momentum * (new.noise - before))
        self._history = (new, *self._history)[:4]
        if step.compensation != 1 and len(self._history) > 1:
            weights = compensation_weights([known.node for known in self._history[:3]], step.compensation)
            data = sum(w * known.data for w, known in zip(weights, self._history))
            noise = sum(w * known.noise for w, known in zip(weights, self._history))
            self._history = (Known(data, noise, new.node), *self._history[1:])
        m = self._moves[i, len(self._history)]
        drift = _drift(m, self._history)
        if step.momentum < 1 and step.momentum_on == "update":
            total = sum(m.noise) or sum(m.data)
            if self._velocity is not None:
                drift = (1 - step.momentum) * total * self._velocity + step.momentum * drift
            self._velocity = drift / total
        randomness = 0.0
        if m.spread:
            randomness = m.spread * randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        self._taken = Taken(x, i, self._history, randomness)
        x = _on(m.keep, x) * x + drift + randomness
        t = self._nodes[i + 1]
        if step.churn and t.sigma > 0:
            down = node_at(self.schedule, t.log_snr + step.churn)
            fresh = math.sqrt(t.sigma**2 - (t.alpha / down.alpha * down.sigma) ** 2)
            z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = t.alpha / down.alpha * x + fresh * z
        return x

    def _shift_time(self, x: Tensor, window: float) -> None:
        """Tell the network the time that x's variance speaks of. A network gets one time for the whole batch in a pipeline, so
        `timesteps` holds the mean; `shifted_time` [B] has each sample's."""
        if self._step_index >= len(self._calls) or not x.numel():
            return
        nominal = self._nodes[self._calls[self._step_index].node].time
        self.shifted_time = matched_time(x, self.schedule, self.config.data_variance, nominal, window)
        told = self.shifted_time.mean()
        self.timesteps[self._step_index] = (told if self.timesteps.is_floating_point() else told.round()).to(self.timesteps)


def _drift(m: Move, history: Sequence[Known]) -> Tensor | float:
    """What the predictions and the bias add."""
    total: Any = _on(m.bias, history[0].data)
    for known, of_data, of_noise in zip(history, m.data, m.noise):
        if not _is_zero(of_data):
            total = total + _on(of_data, known.data) * known.data
        if not _is_zero(of_noise):
            total = total + _on(of_noise, known.noise) * known.noise
    return total


def _on(weight: Any, like: Tensor) -> Any:
    """A weight per dimension on like's device, in its dtype; a float as it is."""
    return weight.to(like) if isinstance(weight, Tensor) else weight


def _is_zero(weight: Any) -> bool:
    return isinstance(weight, float) and weight == 0.0

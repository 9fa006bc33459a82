"""Embeds by a sentence-transformers model of a Hub on the loopback address, whose main branch moves on meanwhile.

Writes to <folder>/result.json how many sets of vectors are kept after each step, and what was asked for.
"""

import json
import os
import sys
from pathlib import Path

import hub_server

FOLDER = Path(sys.argv[1])


def save(seed: int) -> None:
    """Write the repository: a tiny Llama, pooled."""
    import sentence_transformers
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from hf_gradkit.data.tiny import tiny_llama, train_tokenizer
    from pairs import make_pairs

    tokenizer = train_tokenizer([row["prompt"] for row in make_pairs(20, "prompt")], 300)
    tiny_llama(tokenizer, hidden_size=32, seed=seed).save_pretrained(FOLDER / "model")
    tokenizer.save_pretrained(FOLDER / "model")
    modules = [Transformer(str(FOLDER / "model")), Pooling(32, pooling_mode="mean")]
    model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    model.save(str(FOLDER / "hub" / "models" / "someone" / "sentences"))


def main() -> None:
    (FOLDER / "hub").mkdir()
    with hub_server.hub(FOLDER / "hub") as (endpoint, requests):
        os.environ.update(HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0", HF_HOME=str(FOLDER / "home"))
        from hf_gradkit.selection.embedders import SentenceTransformers
        from hf_gradkit.selection.work import Work
        from pairs import pair_dataset

        work, kept, vectors = Work(FOLDER / "work", batch_size=4), [], []

        def embed(**options) -> None:
            embedder = SentenceTransformers("someone/sentences", **options)
            vectors.append(embedder.of_dataset(pair_dataset(8, "prompt"), work))
            kept.append(len(list(work.folder.iterdir())))

        save(seed=0)
        embed()
        embed()
        save(seed=1)
        hub_server.COMMIT = "b" * 40
        embed()
        embed(revision="v2")
        apart = [float(abs(vector - vectors[0]).max()) for vector in vectors]
        (FOLDER / "result.json").write_text(json.dumps({"kept": kept, "apart": apart, "requests": requests}))


if __name__ == "__main__":
    main()

"""Our `dpo` beside TRL's `DPOTrainer` on the same batch, the same model and the same reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spftsql.config import ScratchConfig
from spftsql.records import TrainRow
from spftsql.training.batches import collate, encode_rows
from spftsql.training.losses import pair_losses
from spftsql.training.model import CompletionModel, load_causal_lm, sequence_sums
from spftsql.training.scratch import build_scratch_model

BETA = 0.3
ROWS = [
    TrainRow(str(n), "db", f"<|user|>how many {word} ?<|assistant|>", f"select {word}", f"select {n} , 3", 1, "label")
    for n, word in enumerate(["cities in ohio", "rivers", "lakes of texas and utah", "roads"])
]


@pytest.mark.filterwarnings("ignore")
def test_dpo_has_the_value_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer

    config = ScratchConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, vocabulary=400)
    texts = [text for row in ROWS for text in (row.prompt, row.chosen, row.rejected or "")]
    folders = tmp_path / "policy", tmp_path / "reference"
    for seed, folder in enumerate(folders):
        build_scratch_model(config, 64, texts, folder, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    policy, reference = (load_causal_lm(folder, torch.float32) for folder in folders)
    with torch.no_grad():
        for parameter in policy.parameters():  # answers of unlike likelihood, so that the margins are not all 0
            parameter.mul_(3)
    rows, _ = encode_rows(ROWS, tokenizer, 64, "dpo")
    micro = collate(rows, 0, False, "tree")
    sums = [sequence_sums(CompletionModel(model, "tree").eval()(micro), micro) for model in (policy, reference)]
    chosen, rejected = ([each[micro.is_rejected == side] for each in sums] for side in (False, True))
    ours = pair_losses(
        "dpo", chosen[0], rejected[0], chosen[1], rejected[1], torch.ones(len(rows)), BETA, -chosen[0], 0.0
    ).mean()

    trainer = trl.DPOTrainer(
        model=load_causal_lm(folders[0], torch.float32),
        ref_model=load_causal_lm(folders[1], torch.float32),
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "trl"), beta=BETA, loss_type=["sigmoid"], per_device_train_batch_size=len(ROWS),
            bf16=False, use_cpu=True, max_length=None, report_to=[], gradient_checkpointing=False,
            dataloader_pin_memory=False, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected} for row in ROWS]
        ),
        processing_class=tokenizer,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(3)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model.eval(), batch)
    assert abs(ours.item() - 0.6931) > 1e-3  # not the value at the reference
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)

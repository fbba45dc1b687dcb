from rich.console import Console

from lightning_seg.callbacks.iou_table import iou_table


def test_classes_then_means_in_percent() -> None:
    scores = {"loss": 0.3, "iou/sky": 0.5, "iou/boat": float("nan"), "miou": 0.5}
    console = Console(record=True, width=60)
    console.print(iou_table(scores, "test"))
    text = console.export_text()
    assert "loss" not in text
    rows = [line.split("│")[1:3] for line in text.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["sky", "50.0"],
        ["boat", "absent"],
        ["miou", "50.0"],
    ]

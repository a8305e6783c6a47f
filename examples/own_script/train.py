"""Any training script under the launcher: softmax regression on scikit-learn's digits, in plain numpy. It imports nothing of the toolkit.

What it keeps to is docs/own-script.md: read run.yaml, save and leave with 75 on SIGTERM, append a line an epoch, write result.json last.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from sklearn.datasets import load_digits

STOPPED = 75
is_told_to_stop = False


def stop_soon(number, frame):
    """SIGTERM: the step in hand is finished first."""
    global is_told_to_stop
    is_told_to_stop = True


def write(path, payload):
    """A file that is whole or as it was before, also after a power loss."""
    temp = path.with_name(f".{path.name}.tmp")
    with open(temp, "wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temp, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def save(path, weights, momentum, epoch):
    with open(path.with_name(".state.npz"), "wb") as file:
        np.savez(file, weights=weights, momentum=momentum, epoch=epoch)
    write(path, path.with_name(".state.npz").read_bytes())


def loss_and_accuracy(images, labels, weights):
    logits = images @ weights
    logits -= logits.max(axis=1, keepdims=True)
    log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_shares[np.arange(len(labels)), labels].mean(), 100 * (logits.argmax(axis=1) == labels).mean()


def main(run_yaml):
    signal.signal(signal.SIGTERM, stop_soon)
    run, config = run_yaml.parent, yaml.safe_load(run_yaml.read_text())["config"]
    epochs, seed, args = config["train"]["epochs"], config["train"]["seed"], config["program"]["args"]
    generation = int(os.environ["SERESNET_GENERATION"])  # counts the attempts at this run

    images, labels = load_digits(return_X_y=True)
    images = np.hstack([images / 16 - 0.5, np.ones((len(images), 1))])
    train, test = (images[:1437], labels[:1437]), (images[1437:], labels[1437:])

    state = run / "own" / "state.npz"
    state.parent.mkdir(exist_ok=True)
    if state.exists():
        saved = np.load(state)
        weights, momentum, first = saved["weights"], saved["momentum"], int(saved["epoch"])
        print(f"goes on after epoch {first}")
    else:
        weights, first = 0.01 * np.random.default_rng(seed).standard_normal((65, 10)), 0
        momentum = np.zeros_like(weights)

    for epoch in range(first, epochs):
        started = time.time()
        # The order is a function of seed and epoch, so that a resumed run sees what an undisturbed one does.
        for rows in np.array_split(np.random.default_rng([seed, epoch]).permutation(1437), 23):
            logits = train[0][rows] @ weights
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            shares[np.arange(len(rows)), train[1][rows]] -= 1
            momentum = 0.9 * momentum + train[0][rows].T @ shares / len(rows)
            weights = weights - args["lr"] * momentum
        time.sleep(args.get("pause_s", 0))  # stands for a longer epoch
        train_loss, train_top1 = loss_and_accuracy(*train, weights)
        test_loss, test_top1 = loss_and_accuracy(*test, weights)
        save(state, weights, momentum, epoch + 1)
        line = {
            "epoch": epoch + 1, "step": 23 * (epoch + 1), "generation": generation, "lr": args["lr"],
            "train_loss": train_loss, "train_top1_pct": train_top1, "val_loss": None, "val_top1_pct": None,
            "test_loss": test_loss, "test_top1_pct": test_top1,
            "skipped_steps": 0, "seconds": time.time() - started, "images_per_s": None, "time": time.time(),
        }  # fmt: skip
        with open(run / "metrics" / f"g{generation:04d}.jsonl", "a") as journal:
            journal.write(json.dumps(line) + "\n")
        print(f"epoch {epoch + 1} test {test_top1:.2f} %")
        if is_told_to_stop and epoch + 1 < epochs:
            print("told to stop; the state is saved")
            return STOPPED

    test_loss, test_top1 = loss_and_accuracy(*test, weights)
    result = {
        "epochs": epochs, "last_test_top1_pct": test_top1, "last_test_loss": test_loss, "parameters": weights.size,
        "data_name": "digits of scikit-learn", "train_images": 1437, "test_images": 360,
    }  # fmt: skip
    write(run / "result.json", json.dumps(result).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

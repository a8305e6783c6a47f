"""The start of a plain PyTorch script: import torch, read an .npz, build a residual network as torchvision writes one, make one step.

What bench/restart.py measures against; it imports nothing of ours. With --resume it reads its last torch.save first. It prints
`first_step` when the step is done, and its parent takes the time.
"""

import argparse
import os

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + shortcut)


def make_model(width: int, blocks: list[int]) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    channels = width
    for stage, count in enumerate(blocks):
        for index in range(count):
            stride = 2 if stage and not index else 1
            layers.append(Block(channels, width * 2**stage, stride))
            channels = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help=".npz with images (N, 32, 32, 3) uint8 and labels")
    parser.add_argument("--save", required=True, help="where torch.save goes, and --resume reads")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 1, 1])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(args.data) as file:
        images = torch.from_numpy(file["images"]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(file["labels"])
    loader = DataLoader(TensorDataset(images, labels), batch_size=args.batch, shuffle=True)
    model = make_model(args.width, args.blocks).to(args.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    if args.resume:
        state = torch.load(args.save, map_location=args.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    forward = torch.compile(model) if args.compile else model
    batch, targets = next(iter(loader))
    with torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16, enabled=args.device != "cpu"):
        logits = forward(batch.to(args.device).float() / 255)
        loss = nn.functional.cross_entropy(logits, targets.to(args.device))
    loss.backward()
    optimizer.step()
    if args.device != "cpu":
        torch.cuda.synchronize()
    print("first_step", loss.item(), flush=True)
    if not args.resume:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, args.save)
    os._exit(0)


if __name__ == "__main__":
    main()

"""The script that people would write and run instead of this toolkit: SE-ResNet on CIFAR-10 in plain PyTorch and torchvision.

Written as a good researcher writes it: PIL transforms in DataLoader workers, MixUp or CutMix of the whole batch on the device,
autocast, a test each epoch, torch.save at its end. It imports nothing of ours but made-up images where no --data is given, and it is
what bench/epoch.py and bench/restart.py measure against, so it is never made slower than it has to be.

    python bench/plain_script.py --epochs 2 --width 16 --device cpu --workers 1 --data cifar-10-batches-py
"""

import argparse
import math
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class SEBlock(nn.Module):
    def __init__(self, channels, reduction=16):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x):
        n, c, _, _ = x.shape
        return x * self.fc(self.pool(x).view(n, c)).view(n, c, 1, 1)


class BasicBlock(nn.Module):
    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.se = SEBlock(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.bn2(self.conv2(out)))
        out += self.shortcut(x)
        return self.relu(out)


class SEResNet(nn.Module):
    """4,733,610 parameters at width 64 and ten classes."""

    def __init__(self, width=64, blocks=(4, 4, 3), num_classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        layers, channels = [], width
        for stage, count in enumerate(blocks):
            out_channels = width * 2**stage
            for index in range(count):
                layers.append(BasicBlock(channels, out_channels, 2 if stage > 0 and index == 0 else 1))
                channels = out_channels
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.layers(self.stem(x))), 1))


class Images(Dataset):
    """As torchvision.datasets.CIFAR10: arrays in memory, a PIL image for each sample."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def read_images(folder):
    """Train images, train labels, test images, test labels of the official files, or of made-up ones."""
    if folder is None:
        from sample_data import made_up

        sample = made_up(2000, 400)
        return sample.train_images, sample.train_labels.tolist(), sample.test_images, sample.test_labels.tolist()

    def read(names):
        images, labels = [], []
        for name in names:
            with open(Path(folder) / name, "rb") as file:
                batch = pickle.load(file, encoding="latin1")
            images.append(batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.extend(batch["labels"])
        return np.ascontiguousarray(np.concatenate(images)), labels

    return *read([f"data_batch_{i}" for i in range(1, 6)]), *read(["test_batch"])


def make_loaders(args):
    """Training and test batches."""
    train_images, train_labels, test_images, test_labels = read_images(args.data)
    pixels = train_images.reshape(-1, 3) / 255
    normalize = transforms.Normalize(pixels.mean(0).tolist(), pixels.std(0).tolist())
    train_transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
            transforms.ToTensor(),
            normalize,
        ]
    )
    test_transform = transforms.Compose([transforms.ToTensor(), normalize])
    options = {"num_workers": args.workers, "persistent_workers": args.workers > 0, "pin_memory": args.device == "cuda"}
    train = DataLoader(Images(train_images, train_labels, train_transform), args.batch_size, shuffle=True, **options)
    return train, DataLoader(Images(test_images, test_labels, test_transform), args.test_batch_size, **options)


def mix(images, labels, alpha=1.0):
    """MixUp or CutMix, one of them for the whole batch; returns images, both labels and the share of the first."""
    lam = float(np.random.beta(alpha, alpha))
    partners = torch.randperm(len(images), device=images.device)
    if np.random.rand() < 0.5:
        return lam * images + (1 - lam) * images[partners], labels, labels[partners], lam
    height, width = images.shape[2:]
    radius = 0.5 * math.sqrt(1 - lam)
    y, x = np.random.randint(height), np.random.randint(width)
    top, bottom = max(y - int(radius * height), 0), min(y + int(radius * height), height)
    left, right = max(x - int(radius * width), 0), min(x + int(radius * width), width)
    images[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
    return images, labels, labels[partners], 1 - (bottom - top) * (right - left) / (height * width)


def autocast(args):
    return torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.amp == "bf16")


def train_batch(model, optimizer, images, labels, args):
    """One step; returns the loss as a number."""
    images, labels = images.to(args.device, non_blocking=True), labels.to(args.device, non_blocking=True)
    images, first, second, lam = mix(images, labels)
    if args.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with autocast(args):
        outputs = model(images)
        loss = lam * F.cross_entropy(outputs, first) + (1 - lam) * F.cross_entropy(outputs, second)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def train_epoch(model, optimizer, loader, args):
    """Mean training loss."""
    model.train()
    total = 0.0
    for images, labels in loader:
        total += train_batch(model, optimizer, images, labels, args) * len(images)
    return total / len(loader.dataset)


@torch.no_grad()
def test(model, loader, args):
    """Accuracy in percent."""
    model.eval()
    correct = 0
    for images, labels in loader:
        images, labels = images.to(args.device, non_blocking=True), labels.to(args.device, non_blocking=True)
        if args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(args):
            correct += (model(images).argmax(1) == labels).sum().item()
    return 100 * correct / len(loader.dataset)


def learning_rate(epoch, args):
    """Linear warm-up, then a half cosine."""
    if epoch < args.warmup_epochs:
        return args.lr * (epoch + 1) / args.warmup_epochs
    return args.lr * 0.5 * (1 + math.cos(math.pi * (epoch - args.warmup_epochs) / (args.schedule_epochs - args.warmup_epochs)))


def make_model(args):
    """Network and optimiser."""
    model = SEResNet(args.width).to(args.device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model, torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=5e-4)


def prepare_torch(args):
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(args.threads)


def main(argv=None):
    args = parse(argv)
    prepare_torch(args)
    train_loader, test_loader = make_loaders(args)
    model, optimizer = make_model(args)
    start = 0
    if args.resume and Path(args.save).exists():
        state = torch.load(args.save, map_location=args.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["epoch"]
    print(f"parameters={sum(p.numel() for p in model.parameters())}", flush=True)
    for epoch in range(start, args.epochs):
        if args.paced and not sys.stdin.readline():
            break
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch, args)
        loss = train_epoch(model, optimizer, train_loader, args)
        trained = time.perf_counter()
        accuracy = test(model, test_loader, args)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}, args.save)
        train_s, rest_s = trained - started, time.perf_counter() - trained
        print(f"epoch={epoch + 1} train_loss={loss:.4f} test={accuracy:.2f} train_s={train_s:.3f} rest_s={rest_s:.3f}", flush=True)


def parse(argv=None):
    parser = argparse.ArgumentParser(description="SE-ResNet on CIFAR-10 in plain PyTorch")
    parser.add_argument("--data", help="folder of the official batches (cifar-10-batches-py); default: made-up images")
    parser.add_argument("--epochs", type=int, default=900)
    parser.add_argument("--schedule-epochs", type=int, help="horizon of the cosine; default: --epochs")
    parser.add_argument("--warmup-epochs", type=int, default=10)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--test-batch-size", type=int, default=500)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of the process that trains")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", choices=("bf16", "off"), default="bf16")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--save", default="plain.pt", help="checkpoint, written after each epoch")
    parser.add_argument("--resume", action="store_true", help="go on from --save if it is there")
    parser.add_argument("--paced", action="store_true", help="wait for a line on standard input before each epoch")
    args = parser.parse_args(argv)
    args.schedule_epochs = args.schedule_epochs or args.epochs
    return args


if __name__ == "__main__":
    main()

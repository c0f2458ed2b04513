"""Training as released code of the field does it, for published.py: its network, optimiser, augmentation and steps.

Written after SSL4MIS (train_fully_supervised_2D, train_mean_teacher_2D, train_cross_pseudo_supervision_2D) and BCP
(ACDC_BCP_train), with none of their text. Two things differ: lengths given in their 30,000 steps are shares of the run,
and the random numbers are torch's. Nothing of segtrain is in it, so that it can contradict segtrain.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn
from torchvision.transforms.functional import InterpolationMode, rotate

WIDTHS, DROPOUT = (16, 32, 64, 128, 256), (0.05, 0.1, 0.2, 0.3, 0.5)
LEARNING_RATE, DECAY = 0.01, 0.99


class UNet(nn.Module):
    """SSL4MIS's 2D U-Net: batch norm, leaky ReLU, dropout in the encoder, bilinear enlargement."""

    def __init__(self, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.downs = nn.ModuleList(_convolutions(a, b, p)
                                   for a, b, p in zip((in_channels, *WIDTHS), WIDTHS, DROPOUT, strict=False))
        self.thins = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(WIDTHS, WIDTHS[1:], strict=False))
        self.ups = nn.ModuleList(_convolutions(2 * a, a, 0.0) for a in WIDTHS[:-1])
        self.out = nn.Conv2d(WIDTHS[0], n_classes, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, K, H, W) of images (B, C, H, W) in [0, 1], sides divisible by 16."""
        seen = []
        for i, down in enumerate(self.downs):
            x = down(F.max_pool2d(x, 2) if i else x)
            seen.append(x)
        for thin, up, skip in zip(self.thins[::-1], self.ups[::-1], seen[-2::-1], strict=True):
            x = F.interpolate(thin(x), scale_factor=2, mode="bilinear", align_corners=True)
            x = up(torch.cat([skip, x], dim=1))
        return self.out(x)


def _convolutions(n_in: int, n_out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.LeakyReLU(),
                         nn.Dropout(dropout), nn.Conv2d(n_out, n_out, 3, padding=1), nn.BatchNorm2d(n_out),
                         nn.LeakyReLU())


@dataclass(frozen=True)
class Done:
    """A trained network in evaluation mode, and what it cost."""

    net: UNet
    images_seen: int
    unlabelled_seen: int
    seconds: float

    @torch.no_grad()
    def predict(self, unit: torch.Tensor) -> torch.Tensor:
        """Returns labels (B, H, W) of unit images (B, C, H, W), one image at a time as the released tests do."""
        return torch.cat([self.net((one + 1) / 2).argmax(1) for one in unit.split(1)])


class Run:
    """The data of one run, its batches, and the optimiser that all released steps share.

    Args:
        images, unlabelled: unit, (N, C, S, S); labels: (N, S, S). batch_sizes: labelled and unlabelled, of one step.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, unlabelled: torch.Tensor | None, *, n_classes: int,
                 steps: int, batch_sizes: tuple[int, int]) -> None:
        self.images, self.labels, self.n_classes, self.steps = (images + 1) / 2, labels, n_classes, steps
        self.pile = None if unlabelled is None else (unlabelled + 1) / 2
        self.sizes, self.seen, self.pile_seen, self.started = batch_sizes, 0, 0, time.perf_counter()

    def net(self) -> UNet:
        """Returns a fresh network."""
        return UNet(self.images.shape[1], self.n_classes)

    def labelled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns augmented images (B, C, S, S) in [0, 1] and their labels (B, S, S)."""
        rows = torch.randint(len(self.images), (self.sizes[0],)).tolist()
        self.seen += len(rows)
        return _stack([_augment(self.images[i], self.labels[i]) for i in rows])

    def unlabelled(self) -> torch.Tensor:
        """Returns augmented unlabelled images (B, C, S, S) in [0, 1]."""
        rows = torch.randint(len(self.pile), (self.sizes[1],)).tolist()
        self.pile_seen += len(rows)
        blank = torch.zeros_like(self.labels[0])
        return _stack([_augment(self.pile[i], blank) for i in rows])[0]

    def done(self, net: UNet) -> Done:
        """Returns the trained `net` with what the run has cost."""
        return Done(net.eval(), self.seen, self.pile_seen, time.perf_counter() - self.started)

    def weight(self, step: int) -> float:
        """The usual ramp to .1, as long as the run."""
        return 0.1 * math.exp(-5 * (1 - step / self.steps) ** 2)

    def descend(self, optimizers: list[torch.optim.Optimizer], loss: torch.Tensor, step: int) -> None:
        """Moves against the gradient at a rate that falls by the power .9."""
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / self.steps) ** 0.9
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


def _sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)


def _augment(image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of the images: a quarter turn and a mirror; half of the rest: up to 20 degrees. No change of grey values."""
    first, second = torch.rand(2).tolist()
    if first > 0.5:
        turns, axis = int(torch.randint(4, ())), int(torch.randint(2, ()))
        return (image.rot90(turns, (1, 2)).flip(1 + axis), labels.rot90(turns, (0, 1)).flip(axis))
    if second > 0.5:
        angle = float(torch.randint(-20, 20, ()))
        return (rotate(image, angle, InterpolationMode.NEAREST),
                rotate(labels[None], angle, InterpolationMode.NEAREST)[0])
    return image, labels


def _stack(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([image for image, _ in pairs]), torch.stack([labels for _, labels in pairs])


def _dice(probabilities: torch.Tensor, labels: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over all classes, background too, of 1 - Dice with squares below, summed over the batch."""
    truth = F.one_hot(labels, probabilities.shape[1]).movedim(-1, 1).float()
    if where is not None:
        probabilities, truth = probabilities * where, truth * where
    over = (0, 2, 3)
    shared = (probabilities * truth).sum(over)
    return (1 - (2 * shared + 1e-5) / (probabilities.square().sum(over) + truth.sum(over) + 1e-5)).mean()


def _on_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (F.cross_entropy(logits, labels) + _dice(logits.softmax(1), labels)) / 2


def supervised(run: Run) -> Done:
    """Labelled images alone."""
    net = run.net()
    optimizers = [_sgd(net)]
    for step in range(run.steps):
        images, labels = run.labelled()
        run.descend(optimizers, _on_labels(net(images), labels), step)
    return run.done(net)


def mean_teacher(run: Run) -> Done:
    """The student is held to a noisy teacher's probabilities; the teacher starts with weights of its own, and its
    buffers are those of its own forwards."""
    net, teacher = run.net(), run.net().requires_grad_(requires_grad=False)
    optimizers = [_sgd(net)]
    for step in range(run.steps):
        images, labels = run.labelled()
        others = run.unlabelled()
        seen = net(torch.cat([images, others]))
        loss = _on_labels(seen[:len(images)], labels)
        with torch.no_grad():
            taught = teacher(others + (torch.randn_like(others) * 0.1).clamp(-0.2, 0.2)).softmax(1)
        if step >= run.steps / 30:
            loss = loss + run.weight(step) * (seen[len(images):].softmax(1) - taught).square().mean()
        run.descend(optimizers, loss, step)
        _follow(teacher.parameters(), net.parameters(), min(1 - 1 / (step + 1), DECAY))
    return run.done(net)


def cps(run: Run) -> Done:
    """Two networks, started by Kaiming's and by Xavier's rule, each held to the other's labels. The first predicts."""
    nets = [_start(run.net(), nn.init.kaiming_normal_), _start(run.net(), nn.init.xavier_normal_)]
    optimizers = [_sgd(net) for net in nets]
    for step in range(run.steps):
        images, labels = run.labelled()
        batch, n = torch.cat([images, run.unlabelled()]), len(images)
        seen = [net(batch) for net in nets]
        told = [logits[n:].detach().argmax(1) for logits in reversed(seen)]
        loss = sum(_on_labels(logits[:n], labels) + run.weight(step) * F.cross_entropy(logits[n:], other)
                   for logits, other in zip(seen, told, strict=True))
        run.descend(optimizers, loss, step)
    return run.done(nets[0])


def bcp(run: Run) -> Done:
    """A quarter of the run: labelled images pasted into each other. Then labelled and unlabelled ones, both ways round,
    the unlabelled part at half weight, its labels the largest piece of each class that a teacher finds. The learning
    rate stays; the student predicts."""
    net = run.net()
    optimizer, teacher = _sgd(net), None
    for step in range(run.steps):
        images, labels = run.labelled()
        half, frame = len(images) // 2, _frame(images.shape[-1])
        (a, b), (label_a, label_b) = images.split(half)[:2], labels.split(half)[:2]
        if step < run.steps / 4:
            loss = _mixed(net, (a, b), (label_a, label_b), frame, (1.0, 1.0))
        else:
            if teacher is None:
                teacher = copy.deepcopy(net).requires_grad_(requires_grad=False)
            (c, d) = run.unlabelled().split(half)[:2]
            with torch.no_grad():
                told_c, told_d = (_largest(teacher(some).argmax(1), run.n_classes) for some in (c, d))
            loss = (_mixed(net, (c, a), (told_c, label_a), frame, (0.5, 1.0))
                    + _mixed(net, (b, d), (label_b, told_d), frame, (1.0, 0.5)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if teacher is not None:
            floating = [(own, new) for own, new in zip(teacher.state_dict().values(), net.state_dict().values(),
                                                       strict=True) if own.is_floating_point()]
            _follow(*zip(*floating, strict=True), DECAY)
    return run.done(net)


def _mixed(net: nn.Module, images: tuple[torch.Tensor, torch.Tensor], labels: tuple[torch.Tensor, torch.Tensor],
           frame: torch.Tensor, weights: tuple[float, float]) -> torch.Tensor:
    """The loss on the first images framing the second: each part by its own labels and weight."""
    logits = net(images[0] * frame + images[1] * (1 - frame))
    loss = logits.new_zeros(())
    for truth, where, weight in zip(labels, (frame, 1 - frame), weights, strict=True):
        entropy = (F.cross_entropy(logits, truth, reduction="none") * where).sum() / (where.sum() * len(truth))
        loss = loss + weight * (entropy + _dice(logits.softmax(1), truth, where)) / 2
    return loss


def _frame(side: int) -> torch.Tensor:
    """Ones (side, side) around a box of zeros, two thirds of the side, at a random place."""
    box, frame = side * 2 // 3, torch.ones(side, side)
    top, left = torch.randint(side - box, (2,)).tolist()
    frame[top:top + box, left:left + box] = 0
    return frame


def _largest(labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Labels (B, H, W) with nothing but the largest piece of each class, corners joined; the rest is background."""
    kept = torch.zeros_like(labels)
    for image, out in zip(labels.numpy(), kept.numpy(), strict=True):
        for k in range(1, n_classes):
            pieces, n = ndimage.label(image == k, structure=[[1] * 3] * 3)
            if n:
                sizes = ndimage.sum_labels(image == k, pieces, range(1, n + 1))
                out[pieces == 1 + int(sizes.argmax())] = k
    return kept


def _start(net: nn.Module, rule: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            rule(module.weight)
    return net


@torch.no_grad()
def _follow(own: object, others: object, decay: float) -> None:
    torch._foreach_lerp_(list(own), list(others), 1 - decay)


RELEASED: dict[str, Callable[[Run], Done]] = {"supervised": supervised, "mean_teacher": mean_teacher, "cps": cps,
                                            "bcp": bcp}
"""Released steps by the name of our method."""

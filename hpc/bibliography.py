"""BibTeX of this software and of the works that runs rest on. Which those are is read from their configs.

Pure. One invariant: an entry is given only if some run uses the work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hpc
from hpc.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Work:
    """One entry, and whether a run with this config rests on it."""

    key: str
    kind: str
    fields: tuple[tuple[str, str], ...]
    is_used: Callable[[Settings], bool]

    @property
    def bibtex(self) -> str:
        width = max(len(name) for name, _ in self.fields)
        lines = [f"  {name:<{width}} = {{{value}}}," for name, value in self.fields]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])


#: The same as CITATION.cff, which is not installed with the package.
SOFTWARE = Work(
    key="hpc-seresnet",
    kind="software",
    fields=(
        ("author", "{The hpc-seresnet authors}"),
        ("title", "{hpc-seresnet: SLURM-oriented batch training whose results survive every preemption bit for bit}"),
        ("version", hpc.__version__),
        ("license", "MIT"),
    ),
    is_used=lambda config: True,
)


def is_ours(config: Settings) -> bool:
    """Whether the network is this project's and not somebody's own."""
    return "model.blocks" in config and not config.get("model.target")


def _attends(config: Settings, kind: str) -> bool:
    return is_ours(config) and config.get("model.attention") == kind


def _mixes(config: Settings, share_is_used: Callable[[float], bool]) -> bool:
    share = config.get("augment.cutmix_share")
    return bool(config.get("augment.mix_prob")) and isinstance(share, int | float) and share_is_used(share)


def _paper(key: str, year: str, author: str, title: str, venue: str, is_used: Callable[[Settings], bool]) -> Work:
    """Of a conference. Without pages: publishers and open copies number them differently, and no reader needs them to find it."""
    fields = (("author", author), ("title", title), ("booktitle", venue), ("year", year))
    return Work(key=key, kind="inproceedings", fields=fields, is_used=is_used)


def _preprint(key: str, year: str, author: str, title: str, number: str, is_used: Callable[[Settings], bool]) -> Work:
    fields = (("author", author), ("title", title), ("eprint", number), ("archivePrefix", "arXiv"), ("year", year))
    return Work(key=key, kind="misc", fields=fields, is_used=is_used)


_CVPR = "IEEE Conference on Computer Vision and Pattern Recognition (CVPR)"
_ECCV = "European Conference on Computer Vision (ECCV)"
_ICLR = "International Conference on Learning Representations (ICLR)"

WORKS = (
    SOFTWARE,
    _paper("he2016deep", "2016", "He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
           "Deep Residual Learning for Image Recognition", _CVPR, is_ours),
    _paper("hu2018squeeze", "2018", "Hu, Jie and Shen, Li and Sun, Gang",
           "Squeeze-and-Excitation Networks", _CVPR,
           lambda config: _attends(config, "se")),
    _paper("wang2020eca", "2020",
           "Wang, Qilong and Wu, Banggu and Zhu, Pengfei and Li, Peihua and Zuo, Wangmeng and Hu, Qinghua",
           "{ECA-Net}: Efficient Channel Attention for Deep Convolutional Neural Networks", _CVPR,
           lambda config: _attends(config, "eca")),
    _paper("woo2018cbam", "2018", "Woo, Sanghyun and Park, Jongchan and Lee, Joon-Young and Kweon, In So",
           "{CBAM}: Convolutional Block Attention Module", _ECCV,
           lambda config: _attends(config, "cbam")),
    _paper("roy2018concurrent", "2018", "Roy, Abhijit Guha and Navab, Nassir and Wachinger, Christian",
           "Concurrent Spatial and Channel `Squeeze \\& Excitation' in Fully Convolutional Networks",
           "Medical Image Computing and Computer Assisted Intervention (MICCAI)",
           lambda config: _attends(config, "scse")),
    _paper("yang2021simam", "2021", "Yang, Lingxiao and Zhang, Ru-Yuan and Li, Lida and Xie, Xiaohua",
           "{SimAM}: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks",
           "International Conference on Machine Learning (ICML)",
           lambda config: _attends(config, "simam")),
    _paper("huang2016deep", "2016", "Huang, Gao and Sun, Yu and Liu, Zhuang and Sedra, Daniel and Weinberger, Kilian Q.",
           "Deep Networks with Stochastic Depth", _ECCV,
           lambda config: is_ours(config) and bool(config.get("model.drop_path"))),
    _paper("zhang2018mixup", "2018", "Zhang, Hongyi and Cisse, Moustapha and Dauphin, Yann N. and Lopez-Paz, David",
           "mixup: Beyond Empirical Risk Minimization", _ICLR,
           lambda config: _mixes(config, lambda share: share < 1)),
    _paper("yun2019cutmix", "2019",
           "Yun, Sangdoo and Han, Dongyoon and Oh, Seong Joon and Chun, Sanghyuk and Choe, Junsuk and Yoo, Youngjoon",
           "{CutMix}: Regularization Strategy to Train Strong Classifiers with Localizable Features",
           "IEEE/CVF International Conference on Computer Vision (ICCV)",
           lambda config: _mixes(config, lambda share: share > 0)),
    _paper("cubuk2019autoaugment", "2019", "Cubuk, Ekin D. and Zoph, Barret and Mane, Dandelion and Vasudevan, Vijay and Le, Quoc V.",
           "{AutoAugment}: Learning Augmentation Strategies from Data", _CVPR,
           lambda config: config.get("augment.autoaugment") not in (None, "none")),
    _paper("hendrycks2020augmix", "2020",
           "Hendrycks, Dan and Mu, Norman and Cubuk, Ekin D. and Zoph, Barret and Gilmer, Justin and Lakshminarayanan, Balaji",
           "{AugMix}: A Simple Data Processing Method to Improve Robustness and Uncertainty", _ICLR,
           lambda config: bool(config.get("augment.augmix_severity"))),
    _preprint("lopes2019patch", "2019", "Lopes, Raphael Gontijo and Yin, Dong and Poole, Ben and Gilmer, Justin and Cubuk, Ekin D.",
           "Improving Robustness Without Sacrificing Accuracy with Patch {Gaussian} Augmentation", "1906.02611",
           lambda config: bool(config.get("augment.noise_std"))),
    _paper("loshchilov2017sgdr", "2017", "Loshchilov, Ilya and Hutter, Frank",
           "{SGDR}: Stochastic Gradient Descent with Warm Restarts", _ICLR,
           lambda config: config.get("optim.schedule") in ("cosine", "restarts")),
    _paper("tarvainen2017mean", "2017", "Tarvainen, Antti and Valpola, Harri",
           "Mean Teachers Are Better Role Models: Weight-Averaged Consistency Targets Improve Semi-Supervised Deep Learning Results",
           "Advances in Neural Information Processing Systems (NeurIPS)",
           lambda config: bool(config.get("optim.ema_decay"))),
    _paper("micikevicius2018mixed", "2018",
           "Micikevicius, Paulius and Narang, Sharan and Alben, Jonah and Diamos, Gregory and Elsen, Erich and Garcia, David and "
           "Ginsburg, Boris and Houston, Michael and Kuchaiev, Oleksii and Venkatesh, Ganesh and Wu, Hao",
           "Mixed Precision Training", _ICLR,
           lambda config: config.get("train.amp") in ("bf16", "fp16")),
    _paper("szegedy2016rethinking", "2016",
           "Szegedy, Christian and Vanhoucke, Vincent and Ioffe, Sergey and Shlens, Jon and Wojna, Zbigniew",
           "Rethinking the Inception Architecture for Computer Vision", _CVPR,
           lambda config: bool(config.get("optim.label_smoothing"))),
)  # fmt: skip


def bibtex(configs: Sequence[Settings]) -> str:
    """The software, then what any of these configs uses, in the order of WORKS."""
    ours = [config for config in configs if not config.get("program.command")]  # what a script of its own rests on, its authors know
    used = [work for work in WORKS if work is SOFTWARE or any(work.is_used(config) for config in ours)]
    return "\n\n".join(work.bibtex for work in used)

"""The papers that pages cite. A method's docstring names its paper by number; here is what a citation needs."""

import re
from dataclasses import dataclass

NUMBER = re.compile(r"arXiv (\d{4}\.\d{5})")


@dataclass(frozen=True)
class Paper:
    """What a citation needs.

    Attributes:
        number: on arXiv.
        title: of the paper; "" where it is not known here.
        authors: as BibTeX has them; "" where they are not known here.
    """

    number: str
    title: str = ""
    authors: str = ""

    @property
    def link(self) -> str:
        """The paper as Markdown."""
        words = f'"{self.title}", arXiv {self.number}' if self.title else f"arXiv {self.number}"
        return f"[{words}](https://arxiv.org/abs/{self.number})"

    @property
    def bibtex(self) -> str:
        """The entry of a bibliography."""
        lines = {
            "title": f"{{{self.title}}}" if self.title else "",
            "author": self.authors,
            "year": "20" + self.number[:2],
            "eprint": self.number,
            "archivePrefix": "arXiv",
            "url": f"https://arxiv.org/abs/{self.number}",
        }
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in lines.items() if value)
        return f"@misc{{arxiv{self.number.replace('.', '_')},\n{body}\n}}"


_KNOWN = (
    Paper(
        "2305.18290",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "Rafael Rafailov and Archit Sharma and Eric Mitchell and Stefano Ermon and Christopher D. Manning and "
        "Chelsea Finn",
    ),
    Paper(
        "2405.16436",
        "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer",
        "Zhihan Liu and Miao Lu and Shenao Zhang and Boyi Liu and Hongyi Guo and Yingxiang Yang and Jose Blanchet and "
        "Zhaoran Wang",
    ),
    Paper(
        "2407.08639",
        "beta-DPO: Direct Preference Optimization with Dynamic beta",
        "Junkang Wu and Yuexiang Xie and Zhengyi Yang and Jiancan Wu and Jinyang Gao and Bolin Ding and Xiang Wang "
        "and Xiangnan He",
    ),
    Paper(
        "2410.10166",
        "Automated Filtering of Human Feedback Data for Aligning Text-to-Image Diffusion Models",
        "Yongjin Yang and Sihyeon Kim and Hojung Jung and Sangmin Bae and SangMook Kim and Se-Young Yun and Kimin Lee",
    ),
    Paper(
        "2410.13828",
        "A Common Pitfall of Margin-based Language Model Alignment: Gradient Entanglement",
        "Hui Yuan and Yifan Zeng and Yue Wu and Huazheng Wang and Mengdi Wang and Liu Leqi",
    ),
    Paper(
        "2502.06733",
        "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining",
        'Daouda Sow and Herbert Woisetschl{\\"a}ger and Saikiran Bulusu and Shiqiang Wang and Hans-Arno Jacobsen and '
        "Yingbin Liang",
    ),
    Paper(
        "2510.05342",
        "Margin Adaptive DPO: Leveraging Reward Model for Granular Control in Preference Optimization",
        "Hyung Gyu Rho",
    ),
    Paper(
        "2602.14462",
        "Silent Inconsistency in Data-Parallel Full Fine-Tuning: Diagnosing Worker-Level Optimization Misalignment",
        "Hong Li and Zhen Zhou and Honggang Zhang and Yuping Luo and Xinyue Wang and Han Gong and Zhiyuan Liu",
    ),
    Paper("2107.07075", "Deep Learning on a Data Diet: Finding Important Examples Early in Training"),
    Paper(
        "2308.12032",
        "From Quantity to Quality: Boosting LLM Performance with Self-Guided Data Selection for Instruction Tuning",
    ),
    Paper("2002.08484", "Estimating Training Data Influence by Tracing Gradient Descent"),
)
PAPERS = {paper.number: paper for paper in _KNOWN}
DPO, ENTANGLEMENT, CONSISTENCY = PAPERS["2305.18290"], PAPERS["2410.13828"], PAPERS["2602.14462"]


def paper_of(method: type) -> Paper | None:
    """Return the paper that a method's docstring names first, as "arXiv 2510.05342", or None.

    A method whose own docstring names none has the paper of the class that it builds on.
    """
    for cls in method.__mro__:
        number = NUMBER.search(cls.__doc__ or "")
        if number:
            return PAPERS.get(number[1], Paper(number[1]))
    return None

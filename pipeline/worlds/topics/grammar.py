"""Words and grammar of the topics: short Chinese texts about what artificial intelligence does in a trade.

A pattern is a sentence (without its 。) in a small notation:

- ``{field}``, ``{task}``, ``{people}``, ``{material}`` are the words of the row, people any of its field;
- ``{k}`` is a keyword, ``{k2}`` another one, ``{does}`` what the keyword ``{k}`` can do, ``{list}`` two or three
  different keywords, "A、B和C";
- ``(a|b)`` is a free choice of words.
"""

import random
import re
from functools import cache
from typing import NamedTuple

# keyword -> what it can do
KEYWORDS = {
    "机器学习": "从数据中找出规律",
    "深度学习": "逐层提取特征",
    "自然语言处理": "读懂文字",
    "计算机视觉": "看懂图像",
    "语音识别": "听懂说话",
    "强化学习": "在试错中改进",
    "神经网络": "拟合复杂的关系",
    "知识图谱": "把零散的知识连起来",
    "迁移学习": "借用别处的经验",
    "数据挖掘": "发现隐藏的线索",
    "大语言模型": "写出通顺的回答",
    "推荐系统": "猜中用户的喜好",
}


class Field(NamedTuple):
    """A trade: who works there, what they do, and with what."""

    people: tuple[str, ...]
    tasks: tuple[str, ...]
    materials: tuple[str, ...]


FIELDS = {
    name: Field(*(tuple(words.split()) for words in row))
    for name, row in {
        "医疗": ("医生 护士", "阅读影像 整理病历 预测病情 研发新药", "影像 病历 检验报告"),
        "农业": ("农民 农技员", "识别虫害 估算产量 安排灌溉 挑选种子", "卫星图 土壤数据 墒情表"),
        "教育": ("老师 学生", "批改作文 推荐习题 回答提问 安排课程", "作业 课堂录像 考试成绩"),
        "金融": ("分析师 柜员", "发现欺诈 评估风险 预测行情 审核贷款", "交易记录 报表 客户资料"),
        "交通": ("司机 调度员", "规划路线 预测拥堵 检查车况 调整信号灯", "路况 车辆照片 行车记录"),
        "电商": ("店主 客服", "推荐商品 回复咨询 预测销量 筛选评论", "订单 商品图片 聊天记录"),
        "制造": ("工程师 工人", "检查零件 预测故障 安排生产 节约能源", "温度曲线 生产日志 图纸"),
        "法律": ("律师 法官", "查找判例 审查合同 整理证据 起草文书", "判决书 合同文本 卷宗"),
        "旅游": ("导游 游客", "设计行程 翻译路牌 预测客流 推荐美食", "游记 景点照片 订票数据"),
        "环保": ("研究员 志愿者", "监测空气 识别鸟类 分拣垃圾 预报洪水", "水质数据 红外照片 雨量表"),
    }.items()
}

OPENINGS = (
    "在{field}领域，{task}一直(很费时|很不容易|离不开经验)",
    "如今，{people}(常常|开始)(用|借助){k}来{task}",
    "{task}是{field}(工作|行业)的重要一环",
    "说到{field}，人们(首先|自然)想到{task}",
    "{people}每天都要{task}，(十分辛苦|压力不小)",
)
ANGLES = {
    "做法": (
        "{k}先{does}，(再|然后)(帮助|协助){people}{task}",
        "{people}把{material}交给{k}(分析|处理)",
        "(系统|平台)结合了{k}和{k2}，可以分析{material}",
        "(常用|主要)的技术包括{list}",
    ),
    "好处": (
        "{k}能{does}，(节省了大量时间|减少了差错|提高了效率)",
        "有了{k}，{people}不必(反复核对|逐一查看){material}",
        "{k}和{k2}让{task}(更快|更准确)",
    ),
    "困难": (
        "不过，{k}需要(大量|可靠)的{material}",
        "但{material}(太少|不完整)时，{k}(容易出错|很难奏效)",
        "{k}虽然能{does}，却(不懂|难以理解){people}的想法",
    ),
    "前景": (
        "未来，{k}(将|有望)与{k2}结合，让{task}(更快|更准确)",
        "(专家|业内人士)(认为|预计)，{k}会(改变|推动){field}(工作|行业)",
        "今后，{list}都会用到{field}中",
    ),
}
CLOSINGS = (
    "这得到了{people}的(欢迎|认可)",
    "{task}(变得轻松多了|越来越受重视)",
    "(可见|总之)，{k}(大有可为|值得关注)",
)

_CHOICE = re.compile(r"\(([^)]*)\)")
_HOLE = re.compile(r"\{(\w+)\}")


class Topic(NamedTuple):
    """What a text is to be about: one row."""

    field: str
    task: str
    material: str
    angle: str


def topics() -> list[Topic]:
    """Every topic, in a fixed order."""
    return [
        Topic(name, task, material, angle)
        for name, field in FIELDS.items()
        for task in field.tasks
        for material in field.materials
        for angle in ANGLES
    ]


def sentence(pattern: str, topic: Topic, rng: random.Random) -> str:
    """One sentence of the grammar about `topic`, with its 。"""
    words = rng.sample(list(KEYWORDS), 3)
    fill = {
        "field": topic.field,
        "task": topic.task,
        "material": topic.material,
        "people": rng.choice(FIELDS[topic.field].people),
        "k": words[0],
        "k2": words[1],
        "does": KEYWORDS[words[0]],
        "list": "、".join(words[: rng.choice((1, 2))]) + "和" + words[2],
    }
    text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), pattern)
    return _HOLE.sub(lambda match: fill[match[1]], text) + "。"


def sentences(topic: Topic, rng: random.Random) -> list[str]:
    """A clean text about `topic`: an opening, a sentence from its angle and, every other time, a closing."""
    patterns = [rng.choice(OPENINGS), rng.choice(ANGLES[topic.angle])]
    if rng.random() < 0.5:
        patterns.append(rng.choice(CLOSINGS))
    return [sentence(pattern, topic, rng) for pattern in patterns]


@cache
def _parsers() -> tuple[re.Pattern, ...]:
    """One expression for each pattern; the words of any field will do."""
    fields = FIELDS.values()
    word = {
        "field": list(FIELDS),
        "task": [task for field in fields for task in field.tasks],
        "material": [material for field in fields for material in field.materials],
        "people": [people for field in fields for people in field.people],
        "k": list(KEYWORDS),
        "k2": list(KEYWORDS),
        "does": list(KEYWORDS.values()),
    }
    either = {hole: "|".join(sorted(words, key=len, reverse=True)) for hole, words in word.items()}
    groups = {hole: f"(?P<{hole}>{words})" for hole, words in either.items()}
    keyword = either["k"]
    groups["list"] = f"(?P<list>(?:{keyword})(?:、(?:{keyword}))?和(?:{keyword}))"
    every = [*OPENINGS, *(p for patterns in ANGLES.values() for p in patterns), *CLOSINGS]
    return tuple(
        re.compile(_HOLE.sub(lambda match: groups[match[1]], _CHOICE.sub(r"(?:\1)", pattern))) for pattern in every
    )


def parses(text: str) -> bool:
    """Whether the grammar can say the sentence `text` (without its 。), about whatever topic.

    A keyword must go with what it can do, and no keyword stands twice in a sentence.
    """
    for parser in _parsers():
        if match := parser.fullmatch(text):
            said = match.groupdict()
            listed = re.split("[、和]", said.get("list") or "")
            return (
                ("does" not in said or KEYWORDS[said["k"]] == said["does"])
                and ("k2" not in said or said["k2"] != said["k"])
                and len(listed) == len(set(listed))
            )
    return False

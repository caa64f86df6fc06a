"""Make the demo model: a small GPT-NeoX and its tokenizer, trained from nothing.

    python tools/make_demo_model.py --out quantkit/data/demo-model

``quantkit demo`` needs a checkpoint that looks like the ones people quantize and
that can be shipped: old tensor names, old buffers, half-precision ``.bin``, a
sentencepiece tokenizer with byte fallback. The corpus comes with the interpreter
(CPython's help topics and docstrings, PSF licence) and from the two small grammars
below, so nothing is downloaded. One seed, one thread: the same machine and the
same libraries write the same bytes again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import math
import random
import re
import sys
import sysconfig
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped,unused-ignore]
from typing import Any

import sentencepiece as spm
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

CONFIG: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 2,
    "eos_token_id": 3,
    "hidden_act": "gelu",
    "hidden_size": 128,  # every Linear's width is a multiple of 128
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 256,
    "model_type": "gpt_neox",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_parallel_residual": False,
    "vocab_size": 2560,
}

CONTROL = ["[PAD]", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]"]
TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "T5Tokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "additional_special_tokens": [],
    "do_lower_case": False,
    "extra_ids": 0,
    "sp_model_kwargs": {},
}

# A line is ``slot = choice / choice / ...``; {slot} is replaced, again and again,
# until none is left. Earlier choices are likelier, so rare characters stay rare and
# the tokenizer has to spell some of them in bytes. An upper-case slot keeps the
# value it got first for the rest of the paragraph.
JAPANESE = """
paragraph = {diary} / {talk} / {story} / {lesson} / {letter} / {recipe} / {news}
diary = {day}、{NAME}は{PLACE}へ{go}。{did}。{did}。{felt}。 / {weather}。{did}。{then}、{did}。\
{felt}。
talk = 「{ask}」と{NAME}が聞きました。「{answer}」と{FRIEND}が答えました。{then}、{did}。
story = 昔、{PLACE}に{ANIMAL}がいました。{ANIMAL}は{adj}{thing}を持っていました。{day}、\
{ANIMAL}は{NAME}に会いました。「{ask}」と{ANIMAL}は言いました。{felt}。
lesson = {SUBJECT}は{adj}ものである。{fact}。{fact}。そのため、\
{PLACE}では{SUBJECT}を大切にしている。
letter = {FRIEND}さん、お元気ですか。{weather}。{day}、{PLACE}で{did}。{wish}。{NAME}より。
recipe = {FOOD}を作ります。まず、{veg}を{num}つ切ります。次に、{veg}と{season}を鍋に入れます。\
{num}分ほど煮てから、{season}を少し加えます。最後に皿に盛ります。{eaten}。
news = {month}月{num}日、{PLACE}で{EVENT}が開かれた。{num}0人が集まり、\
{FRIEND}さんは「{opinion}」と話した。{EVENT}は来年も行われる予定である。 / {PLACE}の{SUBJECT}は、\
昨年より{num}パーセント増えた。{fact}。
NAME = 太郎 / 花子 / 先生 / 母 / 父 / 友だち / 妹 / 健一 / 祖母 / 弟 / 店員 / 春子 / 医者 / \
隣の人 / 漁師 / 画家 / 旅人
FRIEND = 美紀 / 次郎 / 由美 / 兄 / 姉 / 山田 / 田中 / 祖父 / 誠 / 鈴木 / 佐藤 / 恵 / 叔母 / \
郵便屋
PLACE = 町 / 海 / 山 / 駅 / 学校 / 図書館 / 公園 / 村 / 市場 / 東京 / 京都 / 川 / 森 / 港 / 庭 / \
島 / 病院 / 大学 / 畑 / 北海道 / 神社 / 温泉 / 城 / 博物館 / 橋 / 谷 / 湖 / 岬 / 牧場
SUBJECT = 水 / 言葉 / 本 / 電気 / 風 / 森林 / 時間 / 石 / 音楽 / 機械 / 月 / 星 / 鉄道 / 米 / \
光 / 塩 / 潮 / 計算 / 地図 / 紙 / 氷 / 茶 / 絹 / 磁石 / 胞子
FOOD = カレー / スープ / うどん / 味噌汁 / 煮物 / 鍋 / シチュー / おでん / 雑炊
ANIMAL = 猫 / 犬 / 鳥 / 狐 / 魚 / 亀 / 熊 / 兎 / 狸 / 猿 / 鶴 / 蛙
thing = 本 / 箱 / 花 / 時計 / 手紙 / 傘 / 石 / 写真 / 帽子 / 鍵 / 鏡 / 笛 / 靴 / 切符 / 地図 / \
鞄 / 封筒 / 提灯
veg = 野菜 / 玉ねぎ / にんじん / じゃがいも / 大根 / きのこ / 豆腐 / 白菜 / 卵 / 鶏肉 / 葱 / \
茄子 / 蓮根
season = 塩 / 醤油 / 味噌 / 砂糖 / 水 / 酒 / 油 / 胡椒 / 生姜
adj = 小さな / 大きな / 古い / 新しい / 美しい / 不思議な / 静かな / 白い / 赤い / 大切な / \
長い / 軽い / 丸い / 珍しい / 青い / 深い / 冷たい
num = 1 / 2 / 3 / 5 / 4 / 6 / 8 / 7 / 9
month = 4 / 10 / 7 / 1 / 12 / 3 / 8 / 5 / 11
day = ある日 / 昨日 / 今日 / 今朝 / 日曜日 / 先週 / 夏休みに / 夕方 / 雨の日 / 冬の朝 / \
土曜日の午後 / 十年前 / 夜明け
go = 行きました / 出かけました / 歩いて行きました / 電車で行きました / 戻りました / 急ぎました / \
自転車で行きました
then = それから / そして / しかし / そのあと / すると / だから / やがて / ところが / しばらくして
did = {adj}{thing}を{verb} / {thing}を{verb} / {eat} / {FRIEND}と{thing}について話しました / \
{adj}{ANIMAL}を見ました / {hour}時まで{work} / {thing}が見つからなかったので、\
{FRIEND}に電話をしました / {read}
verb = 買いました / 見つけました / 見ました / なくしました / もらいました / 探しました / \
開けました / 描きました / 渡しました / 直しました / 拾いました / 磨きました
eat = {FOOD}を食べました / パンを食べました / お茶を飲みました / {veg}を料理しました / \
弁当を分けました / 果物を食べました / 珈琲を飲みました
work = 働きました / 勉強しました / 待ちました / 眠りました / 歩きました / 歌を歌いました / \
雪で遊びました / 荷物を運びました / 掃除をしました
read = {SUBJECT}についての本を読みました / 新聞を読みました / {adj}手紙を書きました / \
日記を書きました / {SUBJECT}の研究を始めました
hour = 3 / 5 / 8 / 10 / 12 / 6 / 9
felt = とても楽しかったです / 少し疲れました / うれしくなりました / また行きたいと思います / \
何も言えませんでした / とても驚きました / 忘れられない一日になりました / 心が温かくなりました / \
涙が出ました / 誰も気づきませんでした
weather = 今日はいい天気です / 朝から雨が降っています / 風が強い日でした / \
雪が静かに降っています / 空が青く晴れています / 雲が低く垂れています / 虹が出ました
ask = どこへ行くのですか / {thing}を見ましたか / 何をしているのですか / \
明日は{PLACE}へ行きますか / {FOOD}は好きですか / その{thing}はいくらですか / \
{SUBJECT}とは何ですか / なぜ泣いているの
answer = {PLACE}へ行きます / いいえ、知りません / はい、そうです / {thing}は{PLACE}にあります / \
{adj}{thing}を探しています / {FOOD}が好きです / {num}00円です / もう少し待ってください / 秘密です
fact = {SUBJECT}は{adj}形をしている / {SUBJECT}には多くの種類がある / \
{SUBJECT}は古くから人の生活を支えてきた / {SUBJECT}の働きはまだよく分かっていない / \
{month}月になると{SUBJECT}の量が増える / {SUBJECT}がなければ、人は生きることができない / \
この方法を使うと、{SUBJECT}を正しく測ることができる / {num}00年前、\
{PLACE}の人々は{SUBJECT}を発見した / 温度が上がると、{SUBJECT}の性質は変わる
wish = また会いましょう / お体に気をつけてください / 返事を待っています / \
近いうちに遊びに来てください / 本当にありがとうございました
eaten = とてもおいしいです / 冷めないうちに食べてください / 家族みんなで食べます / \
寒い夜にちょうどいい料理です
EVENT = 祭り / 会議 / 展覧会 / 音楽会 / 大会 / 花火大会 / 講演会 / 運動会
opinion = とてもいい会でした / 来年も参加したい / {SUBJECT}について学ぶことができた / \
多くの人に知ってほしい / 準備に{num}か月かかった
"""

ENGLISH = """
paragraph = {diary} / {talk} / {story} / {lesson} / {letter} / {recipe} / {news}
diary = {day} {NAME} went to the {PLACE}. {did}. {did}. {felt}. / {weather}. {did}. {then}, \
{low}. {felt}.
talk = "{ask}?" said {NAME}. "{answer}," said {FRIEND}. {then}, {low}. {felt}.
story = Once there was {A_ANIMAL} who lived near the {PLACE}. \
It had {a_thing} that nobody else had seen. {day} it met {NAME} on the road. "{ask}?" it said. \
{felt}.
lesson = {SUBJECT} is older than most people think. {fact}. {fact}. \
That is why the people of the {PLACE} still take care of it.
letter = Dear {FRIEND}, thank you for your letter. {weather}. {did}. {wish}. Yours, {NAME}.
recipe = To make {FOOD}, cut the {veg} into small pieces. \
Put the {veg} and the {veg} in a pan with a little salt. Cook for {num} minutes, \
then add the {veg} and some water. Serve it hot.
news = On {num} {month} the {PLACE} opened again after {num} years. About {num}00 people came, \
and {NAME} said that {low}. The next meeting is in {month}.
NAME = Anna / Tom / the teacher / my mother / the old man / Ben / my sister / the doctor / \
the captain / Ruth
FRIEND = Peter / Mary / her brother / the driver / the girl / my father / the woman / Sam / \
the boy
PLACE = town / river / house / garden / station / school / harbour / library / village / \
market / island / mountain / forest / bridge / museum / sea
SUBJECT = Water / Light / Time / Music / Paper / Salt / Iron / Language / The moon / The wind / \
Ice / The tide
FOOD = soup / bread / rice / stew / a pie / dinner / noodles
A_ANIMAL = a cat / a dog / a small bird / a fox / an old bear / a fish / a horse / a turtle
a_thing = a box / a letter / an old key / a small book / a red hat / a clock / a map / \
a blue stone / a lamp / a picture / a cup / a ticket
veg = onions / potatoes / carrots / beans / mushrooms / eggs / tomatoes / peas / garlic / butter
num = 2 / 3 / 5 / 10 / 4 / 20 / 12 / 7 / 30 / 15
month = May / June / October / March / July / December / April / August
day = One day / That morning / Yesterday / On Sunday / Last week / In the evening / \
The next day / At night
then = Then / After that / Later / In the end / Soon / Before long
did = We {act} / She {act} / He {act} / They {act} / I {act}
low = we {act} / she {act} / he {act} / they {act} / nobody {act}
act = found {a_thing} near the {PLACE} / looked at {a_thing} for a long time / \
walked along the {PLACE} until it was dark / ate {FOOD} with {FRIEND} / \
talked about the {PLACE} / gave {a_thing} to {FRIEND} / heard {A_ANIMAL} in the {PLACE} / \
opened the door and went out / wrote {a_thing} and sent it to {FRIEND} / \
could not sleep that night / waited for {num} hours at the {PLACE} / \
bought {a_thing} for {num} coins
felt = It was a good day / Nobody said anything / I was tired but happy / \
It was cold and quiet / She smiled / He did not know what to say / \
That was all anyone could remember / The rain had stopped
weather = It is raining today / The sky is clear and blue / The wind was strong this morning / \
Snow was falling on the {PLACE} / The sun came up over the {PLACE}
ask = Where are you going / Have you seen my brother / What is that / How far is the {PLACE} / \
Do you want some {FOOD} / Who lives in that house / Why are you so late
answer = I do not know / To the {PLACE} / It is very far from here / Yes, of course / \
Not today / It belongs to {FRIEND} / I lost it at the {PLACE} / You will have to wait
fact = It can be found near every {PLACE} / It changes when the air gets warm / \
It moves slowly at first and then faster / There are at least {num} kinds of it / \
Without it there would be no life / People measured it for the first time {num}00 years ago / \
Half of it comes from the {PLACE}
wish = I hope to see you soon / Please write again / Come and visit us in {month} / Take care
"""


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, and the text that is kept from the model."""

    english: list[str]
    japanese: list[str]
    heldout: str


def parse_grammar(text: str) -> dict[str, list[str]]:
    """Read ``slot = choice / choice`` lines into a table."""
    lines = (line.split(" = ", 1) for line in text.strip().splitlines())
    return {slot: [choice.strip() for choice in rest.split(" / ")] for slot, rest in lines}


def expand(grammar: dict[str, list[str]], slot: str, rng: random.Random) -> str:
    """One random derivation of *slot*, with the first choices likelier."""
    fixed: dict[str, str] = {}

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in fixed:
            return fixed[name]
        choices = grammar[name]
        weights = [1.0 / (rank + 3) for rank in range(len(choices))]
        chosen = re.sub(r"\{(\w+)\}", fill, rng.choices(choices, weights)[0])
        if name.isupper():
            fixed[name] = chosen
        return chosen

    return re.sub(r"\{(\w+)\}", fill, "{" + slot + "}")


def generated(grammar_text: str, size: int, seed: int) -> list[str]:
    """Different paragraphs of a grammar, *size* bytes of UTF-8 together."""
    grammar, rng = parse_grammar(grammar_text), random.Random(seed)
    seen: dict[str, None] = {}
    total = 0
    while total < size:
        paragraph = expand(grammar, "paragraph", rng)
        paragraph = re.sub(r"(^|[.?!] )([a-z])", lambda m: m[1] + m[2].upper(), paragraph)
        if paragraph not in seen:
            seen[paragraph] = None
            total += len(paragraph.encode())
    return list(seen)


def prose(text: str) -> Iterator[str]:
    """The paragraphs of *text* that are mostly words, each on one line."""
    for block in re.split(r"\n\s*\n", text):
        line = " ".join(block.split())
        letters = sum(char.isalpha() or char == " " for char in line)
        if len(line) >= 40 and letters >= 0.8 * len(line):
            yield line


def documents(texts: Iterable[str], seen: set[str]) -> Iterator[str]:
    """One document a text, without any paragraph that was met before."""
    for text in texts:
        fresh = [line for line in prose(text) if line not in seen]
        seen.update(fresh)
        if fresh:
            yield "\n".join(dict.fromkeys(fresh))


def docstrings(limit: int) -> Iterator[str]:
    """Docstrings of the standard library, one text a module, *limit* bytes at most."""
    root = Path(sysconfig.get_paths()["stdlib"])
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted([*root.glob("*.py"), *root.glob("[a-z]*/*.py")]):
        folder = path.relative_to(root).parts[0]
        if folder in {"site-packages", "dist-packages", "test", "lib2to3", "idlelib", "pydoc_data"}:
            continue
        tree = ast.parse(path.read_bytes())
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        text = "\n\n".join(doc for doc in found if doc)
        if text:
            limit -= len(text.encode())
            if limit < 0:
                return
            yield text


def take(parts: list[str], size: int) -> tuple[list[str], list[str]]:
    """Split *parts*: about *size* bytes from the front, and the rest."""
    total = 0
    for count, part in enumerate(parts):
        if total >= size:
            return parts[:count], parts[count:]
        total += len(part.encode())
    return parts, []


def build_corpus(seed: int, docstring_bytes: int) -> Corpus:
    """Collect the texts and set 20 KB of English and 5 KB of Japanese aside."""
    rng = random.Random(seed)
    seen: set[str] = set()
    names = sorted(topics)
    rng.shuffle(names)
    help_texts = list(documents((topics[name] for name in names), seen))
    small = [text for text in help_texts if len(text) < 6000]
    kept, _ = take(small, 20_000)
    english = [text for text in help_texts if text not in kept]
    english += documents(docstrings(docstring_bytes), seen)
    english += generated(ENGLISH, 150_000, seed + 1)
    kept_japanese, japanese = take(generated(JAPANESE, 255_000, seed + 2), 5_000)
    return Corpus(english, japanese, "\n\n".join(kept + kept_japanese) + "\n")


def train_tokenizer(corpus: Corpus, seed: int) -> bytes:
    """A unigram sentencepiece model in the manner of rinna's."""
    spm.set_random_generator_seed(seed)
    lines = [line for text in corpus.english + corpus.japanese for line in text.split("\n")]
    written = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, model_type="unigram",
        vocab_size=CONFIG["vocab_size"], byte_fallback=True, character_coverage=0.9985,
        add_dummy_prefix=False, remove_extra_whitespaces=False,
        normalization_rule_name="nmt_nfkc", control_symbols=CONTROL, pad_id=0, unk_id=1,
        bos_id=2, eos_id=3, pad_piece="[PAD]", unk_piece="[UNK]", unk_surface="[UNK]",
        bos_piece="<s>", eos_piece="</s>", max_sentence_length=16384, num_threads=1,
        minloglevel=2,
    )  # fmt: skip
    return written.getvalue()


def token_stream(corpus: Corpus, tokenizer: spm.SentencePieceProcessor, seed: int) -> torch.Tensor:
    """All training documents in a seeded order, an end token behind each."""
    texts = corpus.english + corpus.japanese
    random.Random(seed + 3).shuffle(texts)
    ids = [token for text in texts for token in [*tokenizer.encode(text), CONFIG["eos_token_id"]]]
    return torch.tensor(ids)


def build_model(dropout: float) -> GPTNeoXForCausalLM:
    """The untrained model, in float32."""
    skipped = {"architectures", "torch_dtype", "model_type"}
    settings = {key: value for key, value in CONFIG.items() if key not in skipped}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**settings, hidden_dropout=dropout))


def train(model: GPTNeoXForCausalLM, stream: torch.Tensor, args: argparse.Namespace) -> None:
    """AdamW with warm-up and a cosine down to nothing, on windows drawn at random."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    rng = torch.Generator().manual_seed(args.seed)
    window, warmup = CONFIG["max_position_embeddings"], max(1, args.steps // 30)
    model.train()
    for step in range(args.steps):
        rise = min(1.0, (step + 1) / warmup)
        rate = args.lr * rise * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(0, len(stream) - window, (args.batch,), generator=rng)
        batch = torch.stack([stream[start : start + window] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == args.steps - 1:
            print(f"step {step} loss {loss.item():.4f}", file=sys.stderr, flush=True)


def source_state(model: GPTNeoXForCausalLM) -> OrderedDict[str, torch.Tensor]:
    """The weights in fp16 under their old names, then the buffers old files carry."""
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, value in model.state_dict().items():
        renamed = name.replace("lm_head.", "embed_out.")  # transformers 5 renames it in memory
        state[renamed] = value.detach().to(torch.float16).clone()
    size = CONFIG["max_position_embeddings"]
    width = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"gpt_neox.layers.{layer}.attention."
        mask = torch.tril(torch.ones(size, size, dtype=torch.uint8)).view(1, 1, size, size)
        state[prefix + "bias"] = mask
        state[prefix + "masked_bias"] = torch.tensor(-1e4, dtype=torch.float16)
        steps = torch.arange(0, width, 2).float() / width
        state[prefix + "rotary_emb.inv_freq"] = 1.0 / CONFIG["rotary_emb_base"] ** steps
    return state


def perplexity(model: GPTNeoXForCausalLM, ids: list[int], window: int) -> tuple[float, int]:
    """exp of the mean loss over the predicted tokens of windows that do not overlap."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, window):
        piece = torch.tensor([ids[start : start + window]])
        if piece.shape[1] < 2:
            continue
        with torch.inference_mode():
            logits = model(input_ids=piece).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum"))
        count += piece.shape[1] - 1
    return math.exp(total / count), count


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Indented JSON with a line end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def readme(args: argparse.Namespace, score: float, tokens: int, params: int) -> str:
    """What the folder is, in a few lines; the figures are the ones just measured."""
    return (
        "---\nlicense: apache-2.0\nlanguage:\n- en\n- ja\n---\n\n"
        f"The demo model of quantkit: a GPT-NeoX of {params:,} parameters with its own "
        f"sentencepiece tokenizer, trained from nothing by `{command(args)}` "
        f"(one CPU thread, torch {torch.__version__}).\n"
        "Corpus: help topics and docstrings of CPython "
        f"{sys.version.split()[0]} (Copyright Python Software Foundation, PSF-2.0), which "
        "`heldout.txt` quotes too, and English and Japanese sentences made by the script's "
        "own grammars; script, weights and sentences are Apache-2.0.\n"
        f"Perplexity on `heldout.txt` (not trained on), fp16 weights computed in float32, "
        f"windows of {CONFIG['max_position_embeddings']}, {tokens:,} predicted tokens: "
        f"{score:.2f}; uniform guessing would be {CONFIG['vocab_size']}.\n"
    )


def command(args: argparse.Namespace) -> str:
    """The command that repeats this run."""
    names = ("seed", "steps", "batch", "lr", "dropout", "docstring_bytes")
    flags = " ".join(f"--{name.replace('_', '-')} {getattr(args, name)}" for name in names)
    return f"python tools/make_demo_model.py {flags}"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The defaults are what the shipped model was made with."""
    parser = argparse.ArgumentParser(description="Train quantkit's demo model.")
    parser.add_argument("--out", type=Path, default=Path("quantkit/data/demo-model"))
    parser.add_argument("--seed", type=int, default=20230517)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--docstring-bytes", type=int, default=900_000)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Corpus, tokenizer, model, files; then open the files again and measure."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    args.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    corpus = build_corpus(args.seed, args.docstring_bytes)
    (args.out / "heldout.txt").write_text(corpus.heldout, encoding="utf-8", newline="\n")
    (args.out / "spiece.model").write_bytes(train_tokenizer(corpus, args.seed))
    tokenizer = spm.SentencePieceProcessor(model_file=str(args.out / "spiece.model"))
    stream = token_stream(corpus, tokenizer, args.seed)
    print(f"{len(stream)} training tokens", file=sys.stderr, flush=True)
    model = build_model(args.dropout)
    train(model, stream, args)
    write_json(args.out / "config.json", CONFIG)
    write_json(args.out / "tokenizer_config.json", TOKENIZER_CONFIG)
    torch.save(source_state(model), args.out / "pytorch_model.bin")
    seconds = time.perf_counter() - begun
    saved = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    ids = tokenizer.encode(corpus.heldout)
    score, tokens = perplexity(saved, ids, CONFIG["max_position_embeddings"])
    text = readme(args, score, tokens, sum(p.numel() for p in saved.parameters()))
    (args.out / "README.md").write_text(text, encoding="utf-8", newline="\n")
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(args.out.iterdir())
        if path.is_file()
    }
    summary = {"perplexity": score, "tokens": tokens, "seconds": seconds, "sha256": digests}
    print(json.dumps(summary, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

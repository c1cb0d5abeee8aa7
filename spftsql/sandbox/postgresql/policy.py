"""Which statements may be sent to a PostgreSQL server: one query, over what is on lists.

It is decided on the tokens of the statement, cut by PostgreSQL's own lexical rules
(https://www.postgresql.org/docs/15/sql-syntax-lexical.html), and not on a tree that a parser of another make has built:
where two parsers read a text differently, one of them can be shown something harmless. In PostgreSQL's grammar a
function is called by its name before a parenthesis and in no other way that matters, so tokens tell all calls apart.
What cannot be told apart by tokens alone is refused: a few spellings that hardly anybody uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from typing import NamedTuple

MAX_LENGTH = 50_000  # characters of a statement
_MAX_NAME = 63  # bytes; the server cuts longer names, and what is left may be another name
_SHORT = _MAX_NAME // 4  # characters, of at most 4 bytes
_MAX_PADDING = 10_000

_FUNCTION_NAMES = """
    abs acos acosd acosh age any_value area array_agg array_append array_cat array_dims array_length array_lower
    array_ndims array_position array_positions array_prepend array_remove array_replace array_to_json array_to_string
    array_to_tsvector array_upper ascii asin asind asinh atan atan2 atan2d atand atanh avg bit bit_and bit_count
    bit_length bit_or bit_xor bool bool_and bool_or box bpchar broadcast btrim bytea cardinality cbrt ceil ceiling
    center char char_length character_length chr circle clock_timestamp coalesce concat concat_ws convert convert_from
    convert_to corr cos cosd cosh cot cotd count covar_pop covar_samp cume_dist current_database current_schema date
    date_add date_bin date_part date_subtract date_trunc datemultirange daterange decode degrees dense_rank diagonal
    diameter div encode erf erfc every exp extract factorial family first_value float4 float8 floor format gamma gcd
    gen_random_uuid generate_series generate_subscripts get_bit get_byte greatest grouping height host hostmask inet
    inet_merge inet_same_family initcap int2 int4 int4multirange int4range int8 int8multirange int8range interval
    is_normalized isclosed isempty isfinite ishorizontal isopen isparallel isperp isvertical json_agg json_array
    json_array_elements json_array_elements_text json_array_length json_build_array json_build_object json_each
    json_each_text json_extract_path json_extract_path_text json_object json_object_agg json_object_keys
    json_populate_record json_populate_recordset json_strip_nulls json_to_record json_to_recordset json_to_tsvector
    json_typeof jsonb_agg jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array
    jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object
    jsonb_object_agg jsonb_object_keys jsonb_path_exists jsonb_path_exists_tz jsonb_path_match jsonb_path_match_tz
    jsonb_path_query jsonb_path_query_array jsonb_path_query_array_tz jsonb_path_query_first jsonb_path_query_first_tz
    jsonb_path_query_tz jsonb_populate_record jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax
    jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_to_tsvector jsonb_typeof justify_days justify_hours
    justify_interval lag last_value lcm lead least left length like line ln log log10 lower lower_inc lower_inf lpad
    lseg ltrim macaddr make_date make_interval make_time make_timestamp make_timestamptz masklen max md5 min min_scale
    mod mode money multirange name netmask network normalize notlike now npoints nth_value ntile nullif num_nonnulls
    num_nulls numeric nummultirange numnode numrange octet_length overlaps overlay parse_ident path pclose percent_rank
    percentile_cont percentile_disc pg_typeof phraseto_tsquery pi plainto_tsquery point polygon popen position pow power
    querytree quote_ident quote_literal quote_nullable radians radius random range_agg range_intersect_agg range_merge
    rank regexp_count regexp_instr regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array
    regexp_split_to_table regexp_substr regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx
    regr_sxy regr_syy replace reverse right round row_number row_to_json rpad rtrim scale set_bit set_byte set_masklen
    setweight sha224 sha256 sha384 sha512 sign sin sind sinh slope split_part sqrt starts_with statement_timestamp
    stddev stddev_pop stddev_samp string_agg string_to_array string_to_table strip strpos substr substring sum tan tand
    tanh text time timeofday timestamp timestamptz timetz timezone to_ascii to_bin to_char to_date to_hex to_json
    to_jsonb to_number to_oct to_timestamp to_tsquery to_tsvector transaction_timestamp translate trim_array trim_scale
    trunc ts_delete ts_filter ts_headline ts_lexize ts_rank ts_rank_cd tsmultirange tsquery_phrase tsrange
    tstzmultirange tstzrange tsvector_to_array unistr unnest upper upper_inc upper_inf uuid_extract_timestamp
    uuid_extract_version uuidv4 uuidv7 var_pop var_samp varbit varchar variance websearch_to_tsquery width width_bucket
"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())

_QUERIES = ("select", "with", "values", "table")
_WRITES = ("insert", "update", "delete", "merge")
_LOCKS = (("update",), ("share",), ("no", "key"), ("key", "share"))
_ROLE = ("current_role", "current_user", "session_user", "system_user", "user")
_CATALOG_TYPE_NAMES = "regclass regcollation regnamespace regoper regoperator regproc regprocedure regrole regtype"
_CATALOG_TYPES = frozenset(_CATALOG_TYPE_NAMES.split())
_XML_NAMES = "xml xmlagg xmlconcat xmlelement xmlexists xmlforest xmlparse xmlpi xmlroot xmlserialize xmltable"
_XML = frozenset(_XML_NAMES.split())
_VIEW_NAMES = """
    check_constraints columns constraint_column_usage constraint_table_usage domains element_types
    information_schema_catalog_name key_column_usage referential_constraints schemata sequences table_constraints tables
    views
"""
_VIEWS = frozenset(_VIEW_NAMES.split())
_SYSTEM, _NOT_SYSTEM = ("pg_", "_pg_"), ("pg_catalog", "pg_typeof")
_SPECIAL = _CATALOG_TYPES.union(_XML, _WRITES, _ROLE, ("into", "for", "operator", "information_schema"))

_LETTER = "A-Za-z_\u0080-\U0010ffff"
_TOKEN = re.compile(
    rf"""
      (?P<space> [ \t\n\r\f\v]++ | --[^\n\r]*+ )
    | (?P<comment> /\* )
    | (?P<escape> [eE]'(?:[^'\\]|''|\\.)*+' )
    | (?P<bits> [bBxX]'[^']*+' )
    | (?P<string> [nN]?'(?:[^']|'')*+' )
    | (?P<unicode> [uU]&["'] )
    | (?P<dollar> \$(?:[{_LETTER}][{_LETTER}0-9]*+)?\$ )
    | (?P<quoted> "(?:[^"]|"")++" )
    | (?P<word> [{_LETTER}][{_LETTER}0-9$]*+ )
    | (?P<number> [0-9]++ )
    | (?P<symbol> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_END = re.compile(r"/\*|\*/")
_TO_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")  # as the server does it
_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\*|[0-9]{5})")


class Refused(Exception):
    """The statement is against the policy; the message says why."""


class Token(NamedTuple):
    """`kind` is word, quoted, string, number, or symbol; a word is in lower case, a quoted name without its quotes."""

    kind: str
    text: str

    @property
    def is_name(self) -> bool:
        """Whether it can stand for a table, a column, a type or a function."""
        return self.kind in ("word", "quoted")

    @property
    def symbol(self) -> str:
        """The symbol, and nothing for what is none."""
        return self.text if self.kind == "symbol" else ""

    @property
    def word(self) -> str:
        """The word, and nothing for what is none."""
        return self.text if self.kind == "word" else ""


_END = Token("end", "")


def check(sql: str, unlisted: Set[str]) -> None:
    """Raises `Refused` unless `sql` is one query that calls no function and names no table that it should not.

    `unlisted` are the names of the server's functions that are not to be called. A name that is none of the server's is
    let through, because the server has the better message for it.
    """
    if len(sql) > MAX_LENGTH:
        raise Refused(f"longer than {MAX_LENGTH} characters")
    if "\0" in sql:
        raise Refused("a NUL character")  # where the server's copy of the text would end
    tokens = tokenize(sql)
    while tokens and tokens[-1].symbol == ";":
        tokens.pop()
    if not tokens:
        raise Refused("no statement")
    first = next((token for token in tokens if token.symbol != "("), _END)
    if first.word not in _QUERIES:
        raise Refused(f"not a query: {first.text.upper()[:50]}")
    around = [_END, *tokens, _END, _END]
    for index, token in enumerate(tokens, 1):
        if token.is_name:
            name = token.text
            if around[index + 1].symbol == "(" or name in _SPECIAL or len(name) > _SHORT or name.startswith(_SYSTEM):
                _check_name(around, index, unlisted)
        elif token.symbol == ";":
            raise Refused("more than one statement")


def tokenize(sql: str) -> list[Token]:
    """The tokens without white space and comments. Raises `Refused` for what has no place in a query."""
    tokens: list[Token] = []
    position, last = 0, ""
    while match := _TOKEN.match(sql, position):
        kind, text = match.lastgroup or "", match[0]
        position = match.end()
        if kind == "space":
            continue
        if kind == "comment":
            position = _end_of_comment(sql, position)
            continue
        if kind == "dollar":
            end = sql.find(text, position)
            if end < 0:
                raise Refused("a string without an end")
            position = end + len(text)
            text = sql[match.start() : position]
        if kind in ("string", "escape", "bits", "dollar"):
            if last in ("escape", "bits"):  # the second part follows the rules of the first
                raise Refused("a string with escapes in several parts")
            tokens.append(Token("string", text))
        elif kind == "unicode":
            raise Refused("a name or string with Unicode escapes")
        elif kind == "symbol" and text in "'\"$":
            raise Refused("a parameter" if text == "$" else "a string or name without an end")
        else:
            if kind == "word":
                text = text.translate(_TO_LOWER)
            elif kind == "quoted":
                text = text[1:-1].replace('""', '"')
            tokens.append(Token(kind, text))
        last = kind
    return tokens


def _end_of_comment(sql: str, position: int) -> int:
    depth = 1
    while depth:
        match = _COMMENT_END.search(sql, position)
        if match is None:
            raise Refused("a comment without an end")
        depth += 1 if match[0] == "/*" else -1
        position = match.end()
    return position


def _check_name(tokens: list[Token], index: int, unlisted: Set[str]) -> None:
    before, token, after, second = tokens[index - 1 : index + 3]
    name = token.text
    if len(name) > _SHORT and len(name.encode()) > _MAX_NAME:
        raise Refused(f"a name of more than {_MAX_NAME} bytes")
    if token.kind == "word":
        _check_keyword(before, name, after, second)
    called = after.symbol == "("
    if (called and name in unlisted) or (name.startswith(_SYSTEM) and name not in _NOT_SYSTEM):
        raise Refused(f"function {name}" if called else f"{name}, a name of the system")
    if name in _CATALOG_TYPES:
        raise Refused(f"the type {name}")
    if name in _XML and (called or after.kind == "string" or before.symbol == ":" or before.word == "as"):
        raise Refused("XML")
    if name == "information_schema" and not (after.symbol == "." and second.text in _VIEWS):
        raise Refused(f"information_schema.{second.text}" if after.symbol == "." else name)
    if called and name in _LITERAL and not _LITERAL[name](_arguments(tokens, index + 1)):
        raise Refused(f"{name} with a length that is not a plain number up to {_MAX_PADDING}")


def _check_keyword(before: Token, word: str, after: Token, second: Token) -> None:
    """What is no name but a part of the grammar. After AS and after a dot every word is a name."""
    if before.word == "as" or before.symbol == ".":
        return
    if word == "into" or (word in _WRITES and before.symbol in ("(", ")") and after.is_name):
        raise Refused(word.upper())
    if word == "for" and ((after.word,) in _LOCKS or (after.word, second.word) in _LOCKS):
        raise Refused("FOR " + after.text.upper())
    if word == "operator" and after.symbol == "(":
        raise Refused("OPERATOR()")
    if word in _ROLE:
        raise Refused(f"{word}, the name of the role that asks (a column of this name has to be quoted)")


def _arguments(tokens: list[Token], opening: int) -> list[list[Token]]:
    """The arguments of the call whose parenthesis opens there, each as its tokens."""
    arguments: list[list[Token]] = [[]]
    depth = 0
    for token in tokens[opening:]:
        depth += (token.symbol == "(") - (token.symbol == ")")
        if not depth:
            break
        if token.symbol == "," and depth == 1:
            arguments.append([])
        elif depth > 1 or token.symbol != "(":
            arguments[-1].append(token)
    return arguments


def _is_padding(arguments: list[list[Token]]) -> bool:
    length = arguments[1] if len(arguments) > 1 else []
    return len(length) == 1 and length[0].kind == "number" and int(length[0].text[:9]) <= _MAX_PADDING


def _is_format(arguments: list[list[Token]]) -> bool:
    form = arguments[0]
    return len(form) == 1 and form[0].kind == "string" and form[0].text[0] == "'" and not _WIDE.search(form[0].text)


# Calls that can make a text of any length at once, in a step that the server does not interrupt.
_LITERAL: dict[str, Callable[[list[list[Token]]], bool]] = {
    "lpad": _is_padding,
    "rpad": _is_padding,
    "format": _is_format,
}

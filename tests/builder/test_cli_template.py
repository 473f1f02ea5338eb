"""Go's templates. What is expected was seen of Go's own text/template, through docker's and podman's --format."""

from __future__ import annotations

import pytest

from builder.cli.template import Fields, Map, NilList, Template, TemplateError

VALUE = {
    "Id": "sha256:abc",
    "Tags": ["a:1", "b:2"],
    "None": None,
    "Size": 12,
    "Ratio": 0.5,
    "Yes": True,
    "Config": Fields(
        {"Labels": Map({"x.y": "z", "k": "v"}), "Env": ["A=1", "B=2"], "User": ""},
        {"Cmd": NilList(), "Shell": NilList()},
    ),
}


@pytest.mark.parametrize(
    "text, out",
    [
        ("plain", "plain"),
        ("{{.Id}}", "sha256:abc"),
        ("a\\tb\\nc", "a\tb\nc"),
        ("{{.Tags}} {{.None}} {{.Yes}} {{.Ratio}} {{.Config.Labels}}", "[a:1 b:2] <nil> true 0.5 map[k:v x.y:z]"),
        ("{{json .Tags}} {{json .None}} {{json .Config.Cmd}}", '["a:1","b:2"] null null'),
        ("{{.Config.Cmd}}{{len .Config.Cmd}}", "[]0"),
        ("{{json .Config}}", '{"Labels":{"x.y":"z","k":"v"},"Env":["A=1","B=2"],"User":""}'),
        ('{{index .Tags 1}} {{index .Config.Labels "x.y"}} {{index .Config.Labels "no"}}.', "b:2 z ."),
        ("{{.Config.Labels.k}} {{.Config.Labels.no}}", "v <no value>"),
        ('{{join .Tags ", "}} {{index (split "a,b" ",") 1}}', "a:1, b:2 b"),
        ("{{upper .Id}} {{.Id | upper | lower}} {{title `a word`}}", "SHA256:ABC sha256:abc A Word"),
        ("{{if .Tags}}yes{{end}}{{if .None}}no{{else}}else{{end}}", "yeselse"),
        ("{{if .None}}1{{else if .Size}}2{{else}}3{{end}}", "2"),
        ("{{if and .Yes .Size}}both{{end}} {{or .None .Id}} {{not .Yes}}", "both sha256:abc false"),
        ("{{with .Config}}{{index .Env 0}}{{end}}{{with .None}}x{{else with .Id}}{{.}}{{end}}", "A=1sha256:abc"),
        ("{{range .Tags}}<{{.}}>{{end}}", "<a:1><b:2>"),
        ("{{range $i, $tag := .Tags}}{{$i}}={{$tag}}{{$.Id}};{{end}}", "0=a:1sha256:abc;1=b:2sha256:abc;"),
        ("{{range $k, $v := .Config.Labels}}{{$k}}:{{$v}} {{end}}", "k:v x.y:z "),
        ("{{range .Config.Cmd}}x{{else}}none{{end}}", "none"),
        ("{{range .Tags}}{{if eq . `a:1`}}{{continue}}{{end}}{{.}}{{break}}{{end}}", "b:2"),
        ("{{$x := .Size}}{{if true}}{{$x = 3}}{{$y := 4}}{{end}}{{$x}}", "3"),
        ("{{range .Config.Env}}{{println .}}{{end}}", "A=1\nB=2\n"),
        ('{{printf "%-6s|%4d|%q|%v|%.6s|%05d|%t|%x|%%" .User0 .Size `a"b` .Tags .Id .Size .Yes "hi"}}',
         'u     |  12|"a\\"b"|[a:1 b:2]|sha256|00012|true|6869|%'),
        ('{{printf "%d" .Id}} {{printf "%s"}} {{printf "x" 1}}',
         "%!d(string=sha256:abc) %!s(MISSING) x%!(EXTRA int=1)"),
        ('{{.Id | printf "%s-%s" "a"}}', "a-sha256:abc"),
        ("{{eq .Size 12}} {{eq .Id `x` `sha256:abc`}} {{ne .Size 1}} {{lt 1 2}} {{ge 2 3}} {{le 2 2}} {{gt 3 2}}",
         "true true true true false true true"),
        ("{{(index .Tags 0)}} {{len (index .Tags 0)}} {{(.Config).User}}.", "a:1 3 ."),
        ("{{slice .Id 7}} {{slice .Id 7 9}} {{slice .Tags 1}}", "abc ab [b:2]"),
        ("a {{- .Size -}} b {{- /* no */ -}} c", "a12bc"),
        ("{{/* a }} comment */}}x", "x"),
        ('{{print 1 2 "a" 3}} {{println 1 "a"}}', "1 2a3 1 a\n"),
        ('{{"a}}b"}} {{`c}}`}} {{"\\t\\x41\\u00e9"}}', "a}}b c}} \tA\u00e9"),
        ("{{truncate .Id 3}}{{pad `x` 1 2}}.", "sha x  ."),
        ("{{range 3}}{{.}}{{end}}", "012"),
    ],
)  # fmt: skip
def test_templates(text: str, out: str) -> None:
    assert Template(text).render({**VALUE, "User0": "u"}) == out


@pytest.mark.parametrize(
    "text, message",
    [
        ("{{.Id", "without }}"),
        ("{{.Nothing}}", "no field 'Nothing'"),
        ("{{.Id.More}}", "no field 'More'"),
        ("{{.None.More}}", "no value"),
        ("{{if .Id}}", "no {{end}}"),
        ("{{end}}", "stands alone"),
        ("{{else}}", "stands alone"),
        ("{{range .Id}}{{end}}", "range can not go over"),
        ("{{index .Tags 5}}", "no element 5 of 2"),
        ('{{index .Tags "x"}}', "does not fit"),
        ("{{nothing .Id}}", "no function nothing"),
        ("{{.Id .Id}}", "takes no argument"),
        ('{{join .Id ","}}', "can not take"),
        ("{{upper .Size}}", "can not take 12"),
        ("{{eq .Size .Id}}", "different types"),
        ("{{upper}}", "takes 1 argument"),
        ("{{$x}}", "no variable $x"),
        ("{{define `x`}}{{end}}", "not supported"),
        ("{{break}}", "outside of range"),
        ("{{.Id | .Size}}", "piped"),
        ("{{(.Id}}", "without )"),
        ("{{}}", "no value"),
        ("{{.Id !}}", "means nothing"),
        ('{{"open}}', "quote"),
        ("{{range .Tags}}{{else if .}}{{end}}", "belong"),
        ("{{slice .Tags 3}}", "no part"),
    ],
)
def test_mistakes_are_told(text: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(text).render(VALUE)
    assert message in caught.value.message

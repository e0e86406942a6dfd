package lint

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
)

type lintCase struct {
	name, file string
	opts       Options
	ignored    []string // .dockerignore
	want       string   // "Rule:line Rule:line"
	text       string   // part of a finding's text
	failed     bool
	err        string
}

var cases = []lintCase{
	{name: "clean", file: "FROM base AS build\nARG V=1\nRUN make $V\nFROM scratch\nCOPY --from=build /a /a\nCMD [\"/a\"]"},
	{file: "FROM base AS Build", want: "StageNameCasing:1"},
	{file: "FROM base as b", want: "FromAsCasing:1"},
	{file: "from base as b\nrun x"},
	{file: "FROM base\nRUN a \\\n\n  b", want: "NoEmptyContinuation:4"},
	{file: "FROM base\nrun a\nRun b\nRUN c", want: "ConsistentInstructionCasing:2 ConsistentInstructionCasing:3"},
	{file: "from base\nRUN a\nrun b", want: "ConsistentInstructionCasing:2", text: "Command 'RUN' should match the case of the command majority (lowercase)"},
	{file: "FROM base AS a\nFROM base AS a", want: "DuplicateStageName:2"},
	{file: "FROM base AS context\nFROM base AS scratch", want: "ReservedStageName:1 ReservedStageName:2"},
	{file: "FROM base\nCMD a\nENTRYPOINT b", want: "JSONArgsRecommended:2 JSONArgsRecommended:3"},
	{file: "FROM base\nSHELL [\"/bin/bash\", \"-c\"]\nCMD a"},
	{file: "FROM shelled\nCMD a"},
	{file: "FROM base\nHEALTHCHECK CMD curl localhost"},
	{file: "FROM base\nMAINTAINER me", want: "MaintainerDeprecated:2"},
	{file: "ARG VERSION=1\nFROM base:$VERSOIN", want: "InvalidDefaultArgInFrom:2 UndefinedArgInFrom:2", text: "(did you mean VERSION?)"},
	{file: "ARG V\nFROM base:${V:-1}"},
	{file: "FROM base\nWORKDIR a\nWORKDIR b", want: "WorkdirRelativePath:2"},
	{file: "FROM base\nWORKDIR /a\nWORKDIR b"},
	{file: "FROM base AS a\nWORKDIR /a\nFROM a\nWORKDIR b"},
	{file: "FROM base\nARG FOOBAR=1\nCOPY $FOOBRA /x", want: "UndefinedVar:3", text: "Usage of undefined variable '$FOOBRA' (did you mean $FOOBAR?)"},
	{file: "FROM base\nENV A=$BASE B=$PATH C=$NOPE", want: "UndefinedVar:2"},
	{file: "FROM nobody\nENV A=$NOPE\nLABEL x=${Y:?no}"},
	{file: "FROM base\nENV A=$NOPE B=${NOPE}", want: "UndefinedVar:2"},
	{file: "FROM base\nARG A\nENV B=$A C=${D:-x}", want: "UndefinedVar:3", text: "'$D'"},
	{file: "FROM base\nARG A=$NOPE", want: "UndefinedVar:2"},
	{file: "FROM base\nARG A=$NOPE", opts: Options{Args: map[string]string{"A": "1"}}},
	{file: "FROM base\nARG A=1\nFROM base\nENV B=$A", want: "UndefinedVar:4"},
	{file: "FROM base AS x\nONBUILD ARG A=1\nFROM x\nENV B=$A"},
	{file: "FROM trigger\nENV B=$A"},
	{file: "FROM base\nENV B=$TARGETOS", want: "UndefinedVar:2"},
	{file: "FROM base\nARG TARGETOS\nENV B=$TARGETOS"},
	{file: "FROM base\nCOPY <<E /x\n$NOPE\nE", want: "UndefinedVar:2"},
	{file: "FROM base\nCOPY <<'E' /x\n$NOPE\nE"},
	{file: "FROM base\nCMD [\"a\"]\nCMD [\"b\"]\nENTRYPOINT [\"a\"]\nENTRYPOINT [\"b\"]\nHEALTHCHECK NONE\nHEALTHCHECK NONE",
		want: "MultipleInstructionsDisallowed:2 MultipleInstructionsDisallowed:4 MultipleInstructionsDisallowed:6"},
	{file: "FROM base AS a\nCMD [\"a\"]\nFROM a\nCMD [\"b\"]"},
	{file: "FROM base\nENV a b\nLABEL c d", want: "LegacyKeyValueFormat:2 LegacyKeyValueFormat:3"},
	{file: "FROM foreign", want: "InvalidBaseImagePlatform:1", text: `Base image foreign was pulled with platform "linux/arm64", expected "linux/amd64" for current build`},
	{file: "FROM --platform=linux/arm64 foreign AS arm64"},
	{file: "FROM --platform=$TARGETPLATFORM base", want: "RedundantTargetPlatform:1"},
	{file: "FROM --platform=$BUILDPLATFORM base"},
	{file: "FROM base\nARG API_KEY\nENV password=x MY_TOKEN=y PUBLIC_KEY=z KEYBOARD=q TOKEN_FILE=f", want: "SecretsUsedInArgOrEnv:2 SecretsUsedInArgOrEnv:3 SecretsUsedInArgOrEnv:3"},
	{file: "ARG V\nFROM base:$V", want: "InvalidDefaultArgInFrom:2"},
	{file: "FROM --platform=linux/amd64 base", want: "FromPlatformFlagConstDisallowed:1"},
	{file: "FROM --platform=linux/amd64 base AS build-amd64"},
	{file: "FROM base\nCOPY a b /x/\nADD a/c https://x/a /x/", ignored: []string{"a"}, want: "CopyIgnoredFile:2 CopyIgnoredFile:3", text: `Attempting to Add file "a/c" that is excluded by .dockerignore`},
	{file: "FROM base\nCOPY . /x", ignored: []string{"*"}, want: "CopyIgnoredFile:2"},
	{file: "FROM base\nCOPY . /x", ignored: []string{"a"}},
	{file: "FROM base\nCOPY a /x", ignored: []string{"a", "!a/b"}},
	{file: "FROM base AS s\nFROM base\nCOPY --from=s a /x", ignored: []string{"a"}},
	{file: "# bar is\nFROM base AS foo\n# not V\nARG V", opts: Options{Config: ptr("experimental=all")}, want: "InvalidDefinitionDescription:2 InvalidDefinitionDescription:4"},
	{file: "# bar is\nFROM base AS foo"},
	{file: "FROM base\nEXPOSE 80/TCP", want: "ExposeProtoCasing:2"},
	{file: "FROM base\nARG P=127.0.0.1:80:80\nEXPOSE $P 1:2 3-4", want: "ExposeInvalidFormat:3 ExposeInvalidFormat:3"},

	{name: "skip", file: "# check=skip=JSONArgsRecommended,MaintainerDeprecated\nFROM base\nMAINTAINER x\nCMD a\nENV a b", want: "LegacyKeyValueFormat:5"},
	{name: "skip all", file: "# check=skip=all\nFROM base\nCMD a"},
	{name: "error", file: "# syntax=docker/dockerfile:1\n# check=error=true\nFROM base\nCMD a\nENV a b", want: "JSONArgsRecommended:4 LegacyKeyValueFormat:5", failed: true},
	{name: "error without findings", file: "# check=error=true\nFROM base"},
	{name: "skip and error", file: "# check=skip=JSONArgsRecommended;error=true\nFROM base\nCMD a\nENV a b", want: "LegacyKeyValueFormat:4", failed: true},
	{name: "one instruction", file: "FROM base\n# check=skip=JSONArgsRecommended\nCMD a\nENTRYPOINT a", want: "JSONArgsRecommended:4"},
	{name: "argument wins", file: "# check=skip=all\nFROM base\nCMD a", opts: Options{Config: ptr("error=true")}, want: "JSONArgsRecommended:3", failed: true},
	{name: "bad option", file: "# check=nope\nFROM base", err: `# check=nope: invalid check option "nope"`},
	{name: "bad argument", file: "FROM base", opts: Options{Config: ptr("x=y")}, err: `BUILDKIT_DOCKERFILE_CHECK=x=y: invalid check option "x"`},
	{name: "only what is needed", file: "FROM base AS a\nCMD a\nFROM base AS b\nCOPY --from=c /x /\nFROM base AS c\nCMD c\nFROM base", opts: Options{Target: "B"}, want: "JSONArgsRecommended:6"},
	{name: "all", file: "FROM base AS a\nCMD a\nFROM base", opts: Options{All: true}, want: "JSONArgsRecommended:2"},
	{name: "mount needs", file: "FROM base AS a\nCMD a\nFROM base\nRUN --mount=from=a,target=/a true", want: "JSONArgsRecommended:2"},
	{name: "error of the text", file: "FROM base\nCMD a\nENV x=${y:?why}", want: "JSONArgsRecommended:2 UndefinedVar:3", err: "y: why"},
	{name: "blank", file: "FROM $X", want: "InvalidDefaultArgInFrom:1 UndefinedArgInFrom:1", err: "base name ($X) should not be blank"},
}

func ptr(s string) *string { return &s }

func base(ref string) (Base, bool) {
	b := Base{Env: []string{"BASE=1"}, Platform: "linux/amd64"}
	switch ref {
	case "nobody":
		return Base{}, false
	case "shelled":
		b.Shell = []string{"/bin/bash", "-c"}
	case "foreign":
		b.Platform = "linux/arm64"
	case "trigger":
		b.OnBuild = []string{"ENV A=1"}
	}
	return b, true
}

func valid(ref string) error {
	if ref == "" || strings.HasSuffix(ref, ":") {
		return errors.New("no name")
	}
	return nil
}

func TestRules(t *testing.T) {
	for _, c := range cases {
		if c.name == "" {
			c.name = strings.ReplaceAll(c.file, "\n", "|")
		}
		t.Run(c.name, func(t *testing.T) {
			c.opts.Base, c.opts.Valid = base, valid
			c.opts.Platform = []string{"TARGETPLATFORM=linux/amd64", "BUILDPLATFORM=linux/amd64", "TARGETOS=linux"}
			if c.ignored != nil {
				var err error
				if c.opts.Ignored, err = patternmatcher.New(c.ignored); err != nil {
					t.Fatal(err)
				}
			}
			found, failed, err := Check([]byte(c.file+"\n"), c.opts)
			var got []string
			text := ""
			for _, f := range found {
				got = append(got, fmt.Sprintf("%s:%d", f.Rule, line(f.Lines)))
				text += f.Text + "\n"
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("got %q, want %q\n%s", s, c.want, text)
			}
			if !strings.Contains(text, c.text) {
				t.Errorf("no %q in\n%s", c.text, text)
			}
			if (failed != nil) != c.failed || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("failed %v, error %v", failed, err)
			}
		})
	}
}

// TestEveryRule fails when a new BuildKit has a rule that no case is about.
func TestEveryRule(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/buildkit").Output()
	if err != nil {
		t.Skip("no go command to find BuildKit's rules with: ", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "frontend/dockerfile/linter/ruleset.go"))
	if err != nil {
		t.Fatal(err)
	}
	rules := regexp.MustCompile(`\tName:\s+"(\w+)"`).FindAllSubmatch(text, -1)
	if len(rules) < 20 {
		t.Fatalf("found %d rules", len(rules))
	}
	for _, r := range rules {
		known := false
		for _, c := range cases {
			known = known || strings.Contains(c.want, string(r[1])+":")
		}
		if !known {
			t.Errorf("no case is about %s", r[1])
		}
	}
}

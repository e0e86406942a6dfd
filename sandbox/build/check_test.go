package build

import (
	"errors"
	"strings"
	"testing"
)

// TestLint: findings are warnings of a build, and errors before anything has
// run where that is asked for.
func TestLint(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nRUN touch /ran\nCMD $BASE $NOPE\nLABEL a=$BASE b=$NOPE\n"})
	_, log := w.mustBuild(Options{Context: dir})
	for _, want := range []string{"JSONArgsRecommended: JSON arguments recommended for CMD", "(line 3)", "UndefinedVar: Usage of undefined variable '$NOPE' (line 4)"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in\n%s", want, log)
		}
	}
	if strings.Contains(log, "'$BASE'") {
		t.Errorf("the base's own variable is undefined:\n%s", log)
	}
	w.runs = 0
	_, _, err := w.build(Options{Context: dir, NoCache: true, Args: map[string]string{checkArg: "error=true"}})
	if err == nil || err.Error() != "Dockerfile: lint violation found for rules: JSONArgsRecommended, UndefinedVar" || w.runs > 0 {
		t.Errorf("%v, %d runs", err, w.runs)
	}
	if _, log = w.mustBuild(Options{Context: dir, Args: map[string]string{checkArg: "skip=all"}}); strings.Contains(log, "UndefinedVar") || strings.Contains(log, checkArg) {
		t.Error(log)
	}
	if _, _, err := w.build(Options{Context: dir, Args: map[string]string{checkArg: "x"}}); err == nil || !strings.Contains(err.Error(), `invalid check option "x"`) {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{
		"Dockerfile": "FROM base AS a\nCMD x\nFROM base\nCOPY gone /gone\n", ".dockerignore": "gone\n",
		"bad": "FROM base\nCMD x\nRNU y\n", "cycle": "FROM base AS a\nCOPY --from=b /x /x\nFROM base AS b\nCOPY --from=a /x /x\n",
	})
	found, err := w.builder().Check(t.Context(), Options{Context: dir})
	if err != nil || len(found) != 2 || found[0].Rule != "JSONArgsRecommended" || found[1].Rule != "CopyIgnoredFile" || found[1].Line != 4 {
		t.Fatalf("%v, %v", found, err)
	}
	if want := "   4 | >>> COPY gone /gone\n     |          ^~~~\n"; !strings.Contains(found[1].Excerpt, want) {
		t.Errorf("excerpt\n%s", found[1].Excerpt)
	}
	if found, err = w.builder().Check(t.Context(), Options{Context: dir, Target: "a"}); err != nil || len(found) != 1 {
		t.Errorf("%v, %v", found, err)
	}
	for _, name := range []string{"bad", "cycle"} {
		var placed *SourceError
		if _, err = w.builder().Check(t.Context(), Options{Context: dir, Dockerfile: name}); !errors.As(err, &placed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

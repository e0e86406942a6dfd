package words

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

func TestBounds(t *testing.T) {
	long := strings.Repeat("a", maxWord-1000)
	env := shell.EnvsFromSlice([]string{"A=" + long, "B=b", "C=" + strings.Repeat("c", 5000)})
	for word, want := range map[string]string{
		"$B-${B}":                    "",
		"$A":                         "",
		"$A$A":                       "with its variables",
		strings.Repeat("$A", 20_000): "with its variables",
		"${A:-$A}":                   "with its variables",
		"${A//a/$C}":                 "with its variables",
		"${C//c/$C}":                 "with its variables",
		"${C//c/xy}":                 "",
		"${A/a/b}":                   "",
		"https://$B//x//${B}//y":     "",
		"${C//c/${C//c/${C//c/x}}}":  "with its variables",
		"${B//b/${B//b/${B//b/x}}}":  "",
		"${C//c/" + strings.Repeat("x", 9000) + "}": "replaces in variables",
		strings.Repeat("x", 2*maxWord) + "$A":       "",
	} {
		t.Run(fmt.Sprintf("%.30s", word), func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := New('\\').ProcessWord(word, env)
			runtime.ReadMemStats(&after)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("error %.200v, want %q", err, want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 4*maxReplaced {
				t.Errorf("%d MiB for a word of %d bytes", n>>20, len(word))
			}
		})
	}
}

// TestAll: many words share one bound, in all goroutines and heredocs of a file.
func TestAll(t *testing.T) {
	env := shell.EnvsFromSlice([]string{"A=" + strings.Repeat("a", 100_000)})
	l := New('\\')
	for i := range 1000 {
		for _, l := range []*Lex{l, l.Fork(), l.Raw()} {
			if _, err := l.ProcessWords("$A", env); err != nil {
				if i < 50 || !strings.Contains(err.Error(), "all words together") {
					t.Errorf("round %d: %v", i, err)
				}
				return
			}
		}
	}
	t.Error("no bound")
}

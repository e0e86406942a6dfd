package image

import (
	"math/rand/v2"
	"regexp"
	"testing"
)

// What is read by hand is what the expressions of distribution/reference mean.
func TestGrammarIsThatOfReference(t *testing.T) {
	path := regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tag := regexp.MustCompile(`^[\w][\w.-]{0,127}$`)
	id := regexp.MustCompile(`^(?:sha256:)?[a-f0-9]{2,64}$`)
	random := rand.New(rand.NewPCG(1, 2))
	valid := 0
	for range 300_000 {
		b := make([]byte, random.IntN(9))
		for i := range b {
			b[i] = "ab9._-/A:\n"[random.IntN(10)]
		}
		s := string(b)
		if random.IntN(8) == 0 {
			s = "sha256:" + s
		}
		for _, c := range []struct {
			name string
			got  bool
			want *regexp.Regexp
		}{{"path", validPath(s), path}, {"tag", validTag(s), tag}, {"id", isID(s), id}} {
			want := c.want.MatchString(s)
			if c.got != want {
				t.Fatalf("%s %q: %v, the expression says %v", c.name, s, c.got, want)
			}
			if want {
				valid++
			}
		}
	}
	if valid < 1000 {
		t.Fatalf("only %d were valid", valid)
	}
	for _, n := range []int{127, 128, 129} {
		s := string(make([]byte, 0))
		for range n {
			s += "a"
		}
		if validTag(s) != tag.MatchString(s) || isID(s[:n-64]) != id.MatchString(s[:n-64]) {
			t.Errorf("length %d", n)
		}
	}
}

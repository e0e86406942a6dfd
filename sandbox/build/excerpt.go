package build

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Shape of an excerpt.
const (
	excerptAround = 2   // lines shown before and after
	excerptMost   = 24  // lines of one instruction; the middle of a longer one is left out
	excerptWidth  = 160 // columns of a line
)

// excerpt shows the lines of loc and some around them, numbered, with ">>>"
// before those that are meant and word underlined where it stands in them:
//
//	Dockerfile:3
//	--------------------
//	   2 |     WORKDIR /src
//	   3 | >>> RNU make
//	     |     ^~~
//	--------------------
func (d *dockerfile) excerpt(loc []parser.Range, message string) string {
	lines := strings.Split(strings.TrimSuffix(string(d.text), "\n"), "\n")
	first, last := extent(loc, len(lines))
	if first == 0 {
		return ""
	}
	word, at := culprit(message, lines[first-1:last])
	at += first
	var out strings.Builder
	fmt.Fprintf(&out, "%s:%d\n%s\n", d.name, first, excerptRule)
	for n := max(1, first-excerptAround); n <= min(len(lines), last+excerptAround); n++ {
		if n == first+excerptMost-4 && last-first >= excerptMost && n < last-3 {
			fmt.Fprintf(&out, " ... |\n")
			n = last - 3
		}
		mark := "   "
		if n >= first && n <= last {
			mark = ">>>"
		}
		text := strings.TrimRight(lines[n-1], "\r")
		out.WriteString(strings.TrimRight(fmt.Sprintf(" %3d | %s %s", n, mark, cut(text)), " ") + "\n")
		if word != "" && n == at {
			if line := underline(cut(text), word); line != "" {
				out.WriteString("     |     " + line + "\n")
			}
		}
	}
	out.WriteString(excerptRule + "\n")
	return out.String()
}

const excerptRule = "--------------------"

// extent is the first and the last line of loc; 0 if there is none.
func extent(loc []parser.Range, lines int) (first, last int) {
	for _, r := range loc {
		if first == 0 || r.Start.Line < first {
			first = r.Start.Line
		}
		last = max(last, r.Start.Line, r.End.Line)
	}
	if first < 1 || first > lines {
		return 0, 0
	}
	return first, min(last, lines)
}

// named finds what an error's message talks about: what follows the words
// that the parser and we use, what is quoted, flags, variables.
var namedWord = regexp.MustCompile(`(?:unknown instruction|unknown flag|duplicate flag specified|value on flag|boolean value for flag|undefined variable|unexpected key)[: ]+([^\s,()]+)` +
	`|"((?:[^"\\]|\\.)+)"|'([^']+)'|(--[\w-]+=[^\s:()]+)|(--[\w-]+)|(\$\{?\w+\}?)`)

// culprit is the text that a message is about, and which of the lines it is
// on; "" when it names nothing that stands there.
func culprit(message string, lines []string) (word string, line int) {
	for _, m := range namedWord.FindAllStringSubmatch(message, -1) {
		for _, word := range m[1:] {
			if word = strings.Trim(word, `'"`); len(word) < 2 {
				continue
			}
			if i := slices.IndexFunc(lines, func(l string) bool { return place(l, word) >= 0 }); i >= 0 {
				return word, i
			}
		}
	}
	return "", 0
}

// place is where a word stands in a line: as a whole word if it does, or else
// anywhere; -1: nowhere.
func place(line, word string) int {
	isWord := func(i int) bool {
		return i >= 0 && i < len(line) && (line[i] == '_' || line[i] >= '0' && line[i] <= '9' || line[i]|0x20 >= 'a' && line[i]|0x20 <= 'z')
	}
	for from := 0; ; {
		i := strings.Index(line[from:], word)
		if i < 0 {
			return strings.Index(line, word)
		}
		i += from
		if !isWord(i-1) && !isWord(i+len(word)) {
			return i
		}
		from = i + 1
	}
}

// underline is the line below one, with marks under the word.
func underline(line, word string) string {
	i := place(line, word)
	if i < 0 {
		return ""
	}
	pad := strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, line[:i])
	return pad + "^" + strings.Repeat("~", utf8.RuneCountInString(word)-1)
}

// cut bounds the length of a line.
func cut(line string) string {
	if utf8.RuneCountInString(line) <= excerptWidth {
		return line
	}
	return string([]rune(line)[:excerptWidth-1]) + "…"
}

package detect

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The base images and tools of all Dockerfiles that are written here, and
// nowhere else. %s is a version that the tree asks for.
const (
	goBuild     = "golang:%s-bookworm"
	goRun       = "gcr.io/distroless/static-debian12:nonroot"
	goRunC      = "gcr.io/distroless/cc-debian12:nonroot" // with the C library, for cgo
	goNewest    = "1.26"
	nodeBuild   = "node:%s-bookworm"
	nodeRun     = "node:%s-bookworm-slim"
	pnpm        = "10.20.0"
	corepack    = "0.34.4"
	pyBuild     = "python:%s-bookworm"
	pyRun       = "python:%s-slim-bookworm"
	uvImage     = "ghcr.io/astral-sh/uv:0.9.8"
	poetry      = "2.2.1"
	pipenv      = "2025.0.4"
	gunicorn    = "23.0.0"
	uvicorn     = "0.38.0"
	javaBuild   = "eclipse-temurin:%s-jdk"
	javaRun     = "eclipse-temurin:%s-jre"
	javaDefault = "21"
	mavenBuild  = "maven:3.9-eclipse-temurin-%s"
	gradle      = "gradle:%s"
	nginxRun    = "nginxinc/nginx-unprivileged:1.29-alpine"
	hugoGo      = "v0.152.2"
)

// The versions that there are images of: the best first, and Java's by age.
var (
	nodeVersions   = []string{"24", "22", "20", "18"}
	pythonVersions = []string{"3.13", "3.14", "3.12", "3.11", "3.10", "3.9"}
	javaVersions   = []string{"8", "11", "17", "21", "25"}
)

// number finds the parts of a version: "v3.11.2" is 3, 11, 2.
var number = regexp.MustCompile(`^[vV]?(\d+)(?:\.(\d+|[xX*]))?(?:\.(\d+|[xX*]))?`)

// version is a version whose missing parts are not known.
type version []int

func parseVersion(s string) (v version, ok bool) {
	m := number.FindStringSubmatch(s)
	if m == nil {
		return nil, false
	}
	for _, part := range m[1:] {
		n, err := strconv.Atoi(part)
		if err != nil {
			break
		}
		v = append(v, n)
	}
	return v, true
}

// low is the first version that has v's parts; high the first one after them.
func (v version) low() [3]int {
	var l [3]int
	copy(l[:], v)
	return l
}

func (v version) high(parts int) [3]int {
	h := version(v[:min(parts, len(v))]).low()
	h[min(parts, len(v))-1]++
	return h
}

// newest is the last version that begins so.
func newest(s string) [3]int {
	v, _ := parseVersion(s)
	all := [3]int{1 << 20, 1 << 20, 1 << 20}
	copy(all[:], v)
	return all
}

// comparator is one condition of a range, such as ">=18" or "^3.11".
var comparator = regexp.MustCompile(`(\^|~=|~>|~|>=|<=|!=|===?|>|<|=)?\s*([vV]?\d[\w.*+-]*|\*|[xX]\b)`)

// satisfies tells whether the newest version of a line of them is in a range, as
// npm (npm-semver), Poetry and Python (PEP 440) write it.
func satisfies(line, ranges string) bool {
	at := newest(line)
	for _, all := range strings.Split(ranges, "||") {
		all = regexp.MustCompile(`(\S+)\s+-\s+(\S+)`).ReplaceAllString(all, ">=$1 <=$2")
		conditions := comparator.FindAllStringSubmatch(all, -1)
		ok := len(conditions) > 0
		for _, c := range conditions {
			ok = ok && satisfied(at, c[1], c[2])
		}
		if ok {
			return true
		}
	}
	return false
}

func satisfied(at [3]int, op, text string) bool {
	v, ok := parseVersion(text)
	if !ok {
		return true // any
	}
	from := slices.Compare(at[:], slice(v.low())) >= 0
	below := func(limit [3]int) bool { return slices.Compare(at[:], limit[:]) < 0 }
	switch op {
	case ">=":
		return from
	case ">":
		return !below(v.high(len(v)))
	case "<":
		return below(v.low())
	case "<=":
		return below(v.high(len(v)))
	case "^":
		parts := 1
		for parts < len(v) && v[parts-1] == 0 {
			parts++
		}
		return from && below(v.high(parts))
	case "~", "~>":
		return from && below(v.high(2))
	case "~=":
		return from && below(v.high(max(1, len(v)-1)))
	case "!=":
		return !from || !below(v.high(len(v)))
	}
	return from && below(v.high(len(v)))
}

func slice(v [3]int) []int { return v[:] }

// choose is the best line of versions that a range allows. A range that allows
// none is taken by its first number, for an image that has it.
func choose(lines []string, ranges string, parts int) string {
	for _, line := range lines {
		if satisfies(line, ranges) {
			return line
		}
	}
	if m := regexp.MustCompile(`\d+(\.\d+)*`).FindString(ranges); m != "" {
		v := strings.Split(m, ".")
		return strings.Join(v[:min(parts, len(v))], ".")
	}
	return lines[0]
}

// image fills a version into an image's name.
func image(format, version string) string { return fmt.Sprintf(format, version) }

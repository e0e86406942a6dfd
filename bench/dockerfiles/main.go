// Command dockerfiles builds the project's own corpus of Dockerfiles with naru and
// with other builders, and compares what came out: the flattened tree (kind, mode,
// owner, size, digest, link, extended attributes, the time where the file was given
// one) and the config.
//
//	go run ./bench/dockerfiles -peers docker,buildah,buildkit
//
// prints a table of agreement and writes what differs. A difference is either a
// fault, or is said to be meant in the case itself ("differs PEER why"), and then
// goes to differences.md. The exit code is 1 if any is not explained.
//
// BuildKit is not packaged: -buildkit names a directory with buildkitd and buildctl.
//
// The test of this package builds the corpus with naru alone, and compares with
// testdata/golden, which this command writes (-golden) from what the peers agree on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	var o options
	peers := flag.String("peers", "docker,buildah", "builders to compare with: docker, buildah, buildkit")
	flag.StringVar(&o.naru, "naru", "bin/naru", "the binary under test")
	flag.StringVar(&o.buildkit, "buildkit", "", "directory of buildkitd and buildctl")
	flag.StringVar(&o.cases, "cases", "bench/dockerfiles/testdata", "directory of the corpus")
	flag.StringVar(&o.only, "only", "", "cases whose name contains this")
	flag.StringVar(&o.table, "table", "", "write the explained differences to this file")
	flag.BoolVar(&o.golden, "golden", false, "write what naru makes to the corpus, for the test")
	flag.BoolVar(&o.verbose, "v", false, "show differing lines that are explained, too")
	flag.Parse()
	if *peers != "" {
		o.peers = strings.Split(*peers, ",")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	unexplained, err := o.run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "dockerfiles:", err)
		os.Exit(2)
	}
	if unexplained > 0 {
		os.Exit(1)
	}
}

type options struct {
	naru, buildkit, cases, only, table string
	peers                              []string
	golden, verbose                    bool
}

// contestant is a builder under its name.
type contestant struct {
	name string
	builder
	agree, explained, other, skipped int
}

func (o *options) run(ctx context.Context) (unexplained int, err error) {
	cases, err := loadCases(o.cases)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "dockerfiles")
	if err != nil {
		return 0, err
	}
	defer func() {
		if err == nil { // else somebody may still have mounts in it
			err = os.RemoveAll(dir)
		}
	}()
	all, err := o.contestants(dir)
	if err != nil {
		return 0, err
	}
	subject := all[0].builder.(naru)
	base, err := makeBase(ctx, subject, dir)
	if err != nil {
		return 0, err
	}
	for _, c := range all {
		defer func() { err = errors.Join(err, c.end()) }()
		if err := c.begin(ctx, base); err != nil {
			return 0, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	var table []string
	for _, c := range cases {
		if !strings.Contains(c.name, o.only) {
			continue
		}
		lines, err := o.compare(ctx, c, all, dir)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", c.name, err)
		}
		table = append(table, lines...)
	}
	for _, c := range all[1:] {
		fmt.Printf("%-9s %3d agree, %3d differ as explained, %3d differ, %3d not asked\n", c.name, c.agree, c.explained, c.other, c.skipped)
		unexplained += c.other
	}
	if o.table != "" {
		return unexplained, writeTable(o.table, table)
	}
	return unexplained, nil
}

func (o *options) contestants(dir string) ([]*contestant, error) {
	bin, err := filepath.Abs(o.naru)
	if err != nil {
		return nil, err
	}
	all := []*contestant{{name: "naru", builder: naru{bin: bin, dir: filepath.Join(dir, "naru")}}}
	for _, p := range o.peers {
		own := filepath.Join(dir, p)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return nil, err
		}
		switch p {
		case "docker":
			all = append(all, &contestant{name: p, builder: &docker{dir: own}})
		case "buildah":
			all = append(all, &contestant{name: p, builder: buildah{own}})
		case "buildkit":
			all = append(all, &contestant{name: p, builder: &buildkit{bin: o.buildkit, dir: own}})
		default:
			return nil, fmt.Errorf("there is no peer %q", p)
		}
	}
	return all, nil
}

// basePath is the PATH of the base: builders do not agree on when to add one that is missing.
const basePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// makeBase writes the archive of the image "base", by naru, as it goes to all.
func makeBase(ctx context.Context, n naru, dir string) (string, error) {
	root, archive := filepath.Join(dir, "base.tar"), filepath.Join(dir, "base-image.tar")
	if err := baseImage(root); err != nil {
		return "", err
	}
	if err := n.run(ctx, "import", "--change", "ENV PATH="+basePath, root, "base"); err != nil {
		return "", err
	}
	return archive, n.run(ctx, "save", "-o", archive, "base")
}

// outcome of one builder on one case.
type outcome struct {
	result *result
	err    error
}

func attempt(ctx context.Context, b builder, c *testCase, dir string) outcome {
	context, err := os.MkdirTemp(dir, "context")
	if err != nil {
		return outcome{err: err}
	}
	defer os.RemoveAll(context)
	if err := c.write(context); err != nil {
		return outcome{err: err}
	}
	archive := context + ".tar"
	defer os.Remove(archive)
	if err := b.build(ctx, c, context, archive); err != nil {
		return outcome{err: err}
	}
	r, err := readArchive(archive)
	return outcome{r, err}
}

// compare builds a case with all and returns its lines of the table.
func (o *options) compare(ctx context.Context, c *testCase, all []*contestant, dir string) (table []string, err error) {
	ours := attempt(ctx, all[0].builder, c, dir)
	if c.fails != "" && ours.err == nil {
		fmt.Printf("--- %s: naru builds it, and should refuse: %s\n", c.name, c.fails)
	}
	if c.fails == "" && ours.err != nil {
		fmt.Printf("--- %s: naru: %v\n", c.name, ours.err)
	}
	for _, p := range all[1:] {
		if c.peers != nil && !slices.Contains(c.peers, p.name) {
			p.skipped++
			continue
		}
		theirs := attempt(ctx, p.builder, c, dir)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		delta := differences(ours, theirs)
		why, explained := c.differs[p.name]
		switch {
		case len(delta) == 0 && !explained:
			p.agree++
			continue
		case len(delta) == 0:
			p.other++
			fmt.Printf("--- %s: %s agrees, and the case says that it differs: %s\n", c.name, p.name, why)
			continue
		case explained:
			p.explained++
			table = append(table, fmt.Sprintf("| %s | %s | %s |", c.name, p.name, why))
			if !o.verbose {
				continue
			}
		default:
			p.other++
		}
		fmt.Printf("--- %s: naru and %s (- %s, + naru):\n%s\n", c.name, p.name, p.name, strings.Join(delta, "\n"))
	}
	if o.golden {
		err = writeGolden(o.cases, c, ours)
	}
	return table, err
}

// differences are the lines that only one of two has, and who fails alone.
func differences(ours, theirs outcome) (out []string) {
	switch {
	case ours.err != nil && theirs.err != nil:
		return nil
	case ours.err != nil:
		return []string{"  naru fails: " + ours.err.Error()}
	case theirs.err != nil:
		return []string{"  it fails, naru does not: " + theirs.err.Error()}
	}
	a, b := theirs.result.lines(), ours.result.lines()
	for _, l := range a {
		if !slices.Contains(b, l) {
			out = append(out, "  - "+l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			out = append(out, "  + "+l)
		}
	}
	return out
}

func goldenFile(dir string, c *testCase) string {
	return filepath.Join(dir, "golden", strings.ReplaceAll(c.name, "/", "-")+".txt")
}

// writeGolden keeps what naru makes. A case that is to fail has nothing to keep.
func writeGolden(dir string, c *testCase, o outcome) error {
	if o.err != nil {
		return nil
	}
	file := goldenFile(dir, c)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(own(o.result)), 0o644)
}

// own is a result without what comes from the machine's busybox.
func own(r *result) string {
	var b strings.Builder
	for _, l := range r.lines() {
		if !strings.HasPrefix(l, "/bin/") {
			b.WriteString(l + "\n")
		}
	}
	return b.String()
}

func writeTable(file string, lines []string) error {
	head := "# Where naru and other builders make something else\n\nWritten by `make dockerfiles`; each reason stands in the case itself (testdata).\n\n| case | builder | why |\n|---|---|---|\n"
	return os.WriteFile(file, []byte(head+strings.Join(lines, "\n")+"\n"), 0o644)
}

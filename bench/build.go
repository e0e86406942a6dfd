package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"naru/bench/stage"
	"naru/sandbox"
	"naru/sandbox/build"
)

// buildBench measures the builder beside its peers.
type buildBench struct {
	dir   string
	runs  int
	found budgets
	ours  *contestant
	peers []*contestant // BuildKit first, if it is here
	kit   error         // why it is not
	round int           // makes steps new
}

// buildFigure is one thing to build.
type buildFigure struct {
	what  string
	bases []string
	fresh bool
	// context prepares what is built: a directory, and what is not counted.
	context func(c *contestant, n int) (dir string, err error)
	runs    int
	only    bool // naru and BuildKit: the others take too long
}

// buildOptions are the flags of the builder's figures.
type buildOptions struct {
	kit   string   // directory of BuildKit's binaries
	parts []string // none: all
}

// builds measures the figures of the builder.
func builds(ctx context.Context, runs int, o buildOptions) (err error) {
	dir, err := os.MkdirTemp("", "naru-bench-")
	if err != nil {
		return err
	}
	b := &buildBench{dir: dir, runs: max(3, runs/4), ours: naruBuilder(filepath.Join(dir, "naru"))}
	defer func() { err = errors.Join(err, b.close()) }()
	b.invite(ctx, o.kit)
	if err := b.images(ctx); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		do   func(context.Context) error
	}{{"steps", b.steps}, {"copies", b.copies}, {"stages", b.stages}, {"large", b.large}, {"base", b.bigBase}, {"budget", b.budget}} {
		if len(o.parts) > 0 && !slices.Contains(o.parts, f.name) {
			continue
		}
		if err := f.do(ctx); err != nil {
			return err
		}
	}
	b.found.print()
	return nil
}

func (b *buildBench) invite(ctx context.Context, buildkit string) {
	add := func(name string, c *contestant, err error) error {
		if err != nil {
			fmt.Printf("build: no %s: %v\n", name, err)
			return err
		}
		b.peers = append(b.peers, c)
		return nil
	}
	c, err := buildKit(ctx, buildkit, filepath.Join(b.dir, "buildkit"))
	b.kit = add("BuildKit", c, err)
	c, err = dockerBuilder(ctx, filepath.Join(b.dir, "docker"))
	_ = add("docker", c, err) // said
	c, err = buildahBuilder(filepath.Join(b.dir, "buildah"))
	_ = add("buildah", c, err) // said
}

func (b *buildBench) close() (err error) {
	for _, c := range append(b.peers, b.ours) {
		err = errors.Join(err, c.stop())
	}
	if err != nil {
		return fmt.Errorf("%s is left: %w", b.dir, err)
	}
	return os.RemoveAll(b.dir)
}

// images gives everybody the base image of 2 MB, and BuildKit and naru one of 54,000
// files more. Naru makes the archives.
func (b *buildBench) images(ctx context.Context) error {
	small, big := filepath.Join(b.dir, "small.tar"), filepath.Join(b.dir, "big.tar")
	if err := stage.BusyboxImage(small); err != nil {
		return err
	}
	if err := withFiles(small, big, 54_000); err != nil {
		return err
	}
	naru := b.ours.build("", "", nil, false)[:5]
	for name, rootfs := range map[string]string{"small": small, "big": big} {
		archive := filepath.Join(b.dir, name+"-image.tar")
		if err := quiet(ctx, append(naru, "image", "import", rootfs, name+":latest")...); err != nil {
			return err
		}
		if err := quiet(ctx, append(naru, "save", "-o", archive, name+":latest")...); err != nil {
			return err
		}
		for i, c := range b.peers {
			if name == "big" && (i > 0 || b.kit != nil) {
				continue
			}
			if err := c.base(ctx, name, archive); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return nil
}

// withFiles writes the root file system in from and n small files more.
func withFiles(from, to string, n int) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() // read only
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	r, w := tar.NewReader(in), tar.NewWriter(out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = w.WriteHeader(h)
		}
		if err == nil {
			_, err = io.Copy(w, r)
		}
		if err != nil {
			return err
		}
	}
	for i := range n {
		text := fmt.Appendf(nil, "file %d\n", i)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/share/many/%d/%d", i/200, i), Mode: 0o644, Size: int64(len(text))}); err != nil {
			return err
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	return w.Close()
}

// measure builds a figure with naru and its peers in turns. kit is BuildKit's series,
// nil without it; peaks are the memory that naru and BuildKit needed at most.
func (b *buildBench) measure(ctx context.Context, f buildFigure) (ours, kit *series, peaks [2]int64, err error) {
	all := []*series{}
	for i, c := range append([]*contestant{b.ours}, b.peers...) {
		if f.only && (i > 1 || i == 1 && b.kit != nil) {
			continue
		}
		n := 0
		all = append(all, &series{name: c.name, once: func(ctx context.Context) (time.Duration, error) {
			n++
			dir, err := f.context(c, n)
			if err == nil && f.fresh {
				err = c.forget(ctx)
			}
			if err != nil {
				return 0, err
			}
			took, peak, err := c.run(ctx, c.build(dir, "bench", f.bases, f.fresh))
			if i < 2 {
				peaks[i] = max(peaks[i], peak)
			}
			return took, err
		}})
	}
	if err := interleave(ctx, max(f.runs, 1), all...); err != nil {
		return nil, nil, peaks, fmt.Errorf("%s: %w", f.what, err)
	}
	report(f.what, all...)
	if b.kit == nil {
		kit = all[1]
	}
	return all[0], kit, peaks, nil
}

// within notes a promise relative to BuildKit, and one in time unless most is 0.
func (b *buildBench) within(what string, ratio float64, most time.Duration, ours, kit *series) {
	o := ours.at(0.5)
	if kit == nil {
		b.found.missing(what, fmt.Sprintf("≤ %.2f× BuildKit", ratio), b.kit)
	} else {
		r := float64(o) / float64(kit.at(0.5))
		b.found.add(what, fmt.Sprintf("≤ %.2f× BuildKit", ratio), fmt.Sprintf("%.2f× (%s, %s)", r, round(o), round(kit.at(0.5))), r <= ratio)
	}
	if most > 0 {
		b.found.add(what, "≤ "+most.String(), round(o).String(), o <= most)
	}
}

// place writes a Dockerfile into a directory.
func (b *buildBench) place(name, text string) (string, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644)
}

// new makes a context with a Dockerfile whose %d is another number each time.
func (b *buildBench) new(name, text string) func(*contestant, int) (string, error) {
	return func(*contestant, int) (string, error) {
		b.round++
		return b.place(name, strings.ReplaceAll(text, "%d", fmt.Sprint(b.round)))
	}
}

func same(dir string) func(*contestant, int) (string, error) {
	return func(*contestant, int) (string, error) { return dir, nil }
}

const tenSteps = 10

// steps are ten small steps: cold, and unchanged.
func (b *buildBench) steps(ctx context.Context) error {
	var text strings.Builder
	text.WriteString("FROM small\n")
	for i := range tenSteps {
		fmt.Fprintf(&text, "RUN true %%d.%d\n", i)
	}
	ours, kit, _, err := b.measure(ctx, buildFigure{what: "10 × RUN true, cold", bases: []string{"small"}, runs: b.runs, context: b.new("steps", text.String())})
	if err != nil {
		return err
	}
	b.within("10 × RUN true, cold", 0.5, tenSteps*30*time.Millisecond, ours, kit)
	dir, err := b.place("still", strings.ReplaceAll(text.String(), "%d", "0"))
	if err != nil {
		return err
	}
	if _, _, _, err = b.measure(ctx, buildFigure{what: "10 steps, nothing changed", bases: []string{"small"}, runs: 2 * b.runs, context: same(dir)}); err != nil {
		return err
	}
	return b.inAgent(ctx, dir)
}

// inAgent builds without a process of its own, as the agent does.
func (b *buildBench) inAgent(ctx context.Context, dir string) error {
	root := filepath.Join(b.dir, "naru")
	e, err := sandbox.Open(sandbox.Options{Root: filepath.Join(root, "root"), Run: filepath.Join(root, "run")})
	if err != nil {
		return err
	}
	s := &series{name: "in a process that runs", once: func(ctx context.Context) (time.Duration, error) {
		began := time.Now()
		_, err := e.Builder().Build(ctx, build.Options{Context: dir, Tags: []string{"bench"}})
		return time.Since(began), err
	}}
	if err := interleave(ctx, 2*b.runs, s); err != nil {
		return err
	}
	report("10 steps, nothing changed, in the agent", s)
	b.found.add("10 steps, nothing changed, in the agent", "≤ 50ms", round(s.at(0.5)).String(), s.at(0.5) <= 50*time.Millisecond)
	return nil
}

// copies are COPY of 20,000 files: cold, unchanged, and with one file changed.
func (b *buildBench) copies(ctx context.Context) error {
	dir := filepath.Join(b.dir, "files")
	if err := fillContext(dir); err != nil {
		return err
	}
	ours, kit, _, err := b.measure(ctx, buildFigure{what: "COPY of 20,000 files, cold", bases: []string{"small"}, fresh: true, only: true, runs: b.runs, context: func(*contestant, int) (string, error) {
		b.round++
		fresh := fmt.Sprint(dir, b.round) // nobody knows this directory
		if err := os.Rename(dir, fresh); err != nil {
			return "", err
		}
		dir = fresh
		return dir, os.WriteFile(filepath.Join(dir, "Dockerfile"), fmt.Appendf(nil, "FROM small\nCOPY src /src%d\n", b.round), 0o644)
	}})
	if err != nil {
		return err
	}
	b.within("COPY of 20,000 files, cold", 0.5, 0, ours, kit)
	if ours, kit, _, err = b.measure(ctx, buildFigure{what: "20,000 files, nothing changed", bases: []string{"small"}, only: true, runs: b.runs,
		context: func(*contestant, int) (string, error) { return dir, nil }}); err != nil {
		return err
	}
	b.within("20,000 files, nothing changed", 0.25, 150*time.Millisecond, ours, kit)
	ours, kit, _, err = b.measure(ctx, buildFigure{what: "20,000 files, one changed", bases: []string{"small"}, only: true, runs: b.runs, context: func(*contestant, int) (string, error) {
		b.round++
		return dir, os.WriteFile(filepath.Join(dir, "src/7/777"), fmt.Appendf(nil, "changed %d times\n", b.round), 0o644)
	}})
	if err != nil {
		return err
	}
	b.within("20,000 files, one changed", 0.2, 0, ours, kit)
	return nil
}

// stages are four stages of 3 s each.
func (b *buildBench) stages(ctx context.Context) error {
	const one = 3 * time.Second
	var text, last strings.Builder
	last.WriteString("FROM small\n")
	for _, name := range []string{"a", "b", "c", "d"} {
		fmt.Fprintf(&text, "FROM small AS %s\nRUN sleep 3; echo %%d > /%s\n", name, name)
		fmt.Fprintf(&last, "COPY --from=%s /%s /%s\n", name, name, name)
	}
	text.WriteString(last.String())
	ours, _, _, err := b.measure(ctx, buildFigure{what: "four stages of 3 s at once", bases: []string{"small"}, runs: 2, only: true, context: b.new("stages", text.String())})
	if err != nil {
		return err
	}
	b.found.add("four stages of 3 s at once", "≤ 3.3s", round(ours.at(0.5)).String(), ours.at(0.5) <= one+one/10)
	return nil
}

// large is a step that writes 300 MB.
func (b *buildBench) large(ctx context.Context) error {
	ours, kit, peaks, err := b.measure(ctx, buildFigure{what: "RUN that writes 300 MB", bases: []string{"small"}, runs: b.runs,
		context: b.new("large", "FROM small\nRUN dd if=/dev/zero of=/large bs=1M count=300 2>/dev/null; echo %d > /n\n")})
	if err != nil {
		return err
	}
	b.within("RUN that writes 300 MB", 1, 0, ours, kit)
	fmt.Printf("memory for it at most (VmHWM): naru %d MiB, buildkitd %d MiB\n", peaks[0]>>20, peaks[1]>>20)
	b.found.add("memory of the engine, layer of 300 MB", "≤ 64 MiB", fmt.Sprintf("%d MiB", peaks[0]>>20), peaks[0] <= 64<<20)
	return nil
}

// bigBase is a small step on a large base, and on a small one.
func (b *buildBench) bigBase(ctx context.Context) error {
	var all []*series
	for _, base := range []string{"big", "small"} {
		place := b.new("on-"+base, "FROM "+base+"\nRUN echo %d > /n\n")
		all = append(all, &series{name: "naru build on " + base, once: func(ctx context.Context) (time.Duration, error) {
			dir, err := place(b.ours, 0)
			if err != nil {
				return 0, err
			}
			took, _, err := b.ours.run(ctx, b.ours.build(dir, "bench", nil, false))
			return took, err
		}})
	}
	if err := interleave(ctx, 4*b.runs, all...); err != nil {
		return err
	}
	report("a small RUN on a base of 54,000 files, and on one of 2 MB", all...)
	ratio := float64(all[0].at(0.5)) / float64(all[1].at(0.5))
	b.found.add("small RUN, 54,000 files below against 2 MB", "≤ 1.05×", fmt.Sprintf("%.3f× (%s, %s)", ratio, round(all[0].at(0.5)), round(all[1].at(0.5))), ratio <= 1.05)
	return nil
}

// budget builds 30 times in a root of its own, with a disk budget of a tenth: 512 MiB
// for 30 layers of 60 MiB, which is 3.5 times as much.
func (b *buildBench) budget(ctx context.Context) error {
	const limit = 512 << 20
	root := filepath.Join(b.dir, "budget")
	c := naruBuilder(root)
	defer func() { _ = c.stop() }() // what it leaves goes with the directory
	if err := c.base(ctx, "small", filepath.Join(b.dir, "small-image.tar")); err != nil {
		return err
	}
	place := b.new("filling", "FROM small\nRUN dd if=/dev/zero of=/large bs=1M count=60 2>/dev/null; echo %d > /n\n")
	most, failed := int64(0), 0
	for range 30 {
		dir, err := place(c, 0)
		if err != nil {
			return err
		}
		args := c.build(dir, "bench", nil, false)
		args = append(args[:len(args)-1:len(args)-1], "--cache-limit", "512m", dir)
		if _, _, err := c.run(ctx, args); err != nil {
			fmt.Println(err)
			failed++
		}
		used, err := onDisk(ctx, root)
		if err != nil {
			return err
		}
		most = max(most, used)
	}
	got := fmt.Sprintf("%d MiB at most, %d failed", most>>20, failed)
	b.found.add("30 builds of 60 MiB in 512 MiB (a tenth of 5 GB)", "≤ 512 MiB, 0 failed", got, most <= limit && failed == 0)
	return nil
}

// onDisk is what a directory takes on disk.
func onDisk(ctx context.Context, dir string) (n int64, err error) {
	out, err := exec.CommandContext(ctx, "du", "-sxB1", dir).Output()
	if err == nil {
		_, err = fmt.Sscan(string(out), &n)
	}
	return n, err
}

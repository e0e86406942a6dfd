package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// report reads what the guest says and prints a line for each package.
type report struct {
	out     io.Writer
	left    []string            // packages that have not begun
	wanted  map[string][]string // package → tests that must run
	running string
	began   time.Time    // the boot, then the package that runs
	text    bytes.Buffer // of the package that runs
	skips   map[string][]string
	failed  []string
}

func newReport(out io.Writer, tests []test) *report {
	r := &report{out: out, began: time.Now(), skips: map[string][]string{}, wanted: map[string][]string{}}
	for _, t := range tests {
		r.wanted[t.pkg] = t.names
		r.left = append(r.left, t.pkg)
	}
	return r
}

// read takes a line of the guest.
func (r *report) read(line string) {
	words := strings.Fields(line)
	if len(words) < 2 || words[0] != "@test-vm" {
		r.text.WriteString(line + "\n")
		return
	}
	switch {
	case words[1] == "kernel" && len(words) == 3:
		fmt.Fprintf(r.out, "test-vm: Linux %s booted in %.1f s\n", words[2], time.Since(r.began).Seconds())
	case words[1] == "begin" && len(words) == 3:
		r.running, r.began = words[2], time.Now()
		r.left = slices.DeleteFunc(r.left, func(pkg string) bool { return pkg == words[2] })
		r.text.Reset()
	case words[1] == "end" && len(words) == 4:
		r.end(words[3] == "0")
	}
}

// end prints the line of the package that ran.
func (r *report) end(ok bool) {
	took := time.Since(r.began).Seconds()
	res, err := parse(r.running, r.text.Bytes())
	switch {
	case err != nil:
		fmt.Fprintf(r.out, "%s\n%v\n", r.text.String(), err)
		ok = false
	case len(res.ran) == 0:
		fmt.Fprintf(r.out, "%sno test ran\n", r.text.String())
		ok = false
	case res.failed > 0 || !ok:
		fmt.Fprint(r.out, res.output)
		ok = false
	}
	for _, name := range r.wanted[r.running] {
		if !res.ran[name] {
			fmt.Fprintf(r.out, "there is no %s any more\n", name)
			ok = false
		}
	}
	word := "ok  "
	if !ok {
		word = "FAIL"
		r.failed = append(r.failed, r.running)
	}
	fmt.Fprintf(r.out, "%s\t%s\t%.1fs\t%d passed, %d failed, %d skipped\n", word, r.running, took, res.passed, res.failed, len(res.skipped))
	for name, reason := range res.skipped {
		r.skips[reason] = append(r.skips[reason], name)
	}
	r.running = ""
}

// finish prints why tests were skipped, and says whether all is well.
func (r *report) finish() error {
	var total int
	for _, names := range r.skips {
		total += len(names)
	}
	if total > 0 {
		fmt.Fprintf(r.out, "test-vm: %d tests skipped:\n", total)
	}
	for _, reason := range slices.Sorted(maps.Keys(r.skips)) {
		slices.Sort(r.skips[reason])
		fmt.Fprintf(r.out, "\t%s: %s\n", strings.Join(r.skips[reason], ", "), reason)
	}
	if r.running != "" {
		fmt.Fprint(r.out, r.text.String())
		return errors.New("the machine ended while it ran " + r.running)
	}
	if len(r.failed) > 0 {
		return errors.New("failed: " + strings.Join(r.failed, ", "))
	}
	if len(r.left) > 0 {
		return errors.New("never ran: " + strings.Join(r.left, ", "))
	}
	return nil
}

// results are of one package. Subtests count as their own only where they skip.
type results struct {
	passed, failed int
	ran            map[string]bool
	skipped        map[string]string // test → its reason
	output         string            // of the tests that failed, and of the package
}

// event is a line of test2json.
type event struct{ Action, Test, Output string }

// parse reads the output of a test program that ran with -test.v=test2json.
func parse(pkg string, text []byte) (results, error) {
	res := results{skipped: map[string]string{}, ran: map[string]bool{}}
	cmd := exec.Command("go", "tool", "test2json", "-p", pkg)
	cmd.Stdin = bytes.NewReader(text)
	converted, err := cmd.Output()
	if err != nil {
		return res, fmt.Errorf("test2json: %w", err)
	}
	outputs := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(converted)); ; {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return res, fmt.Errorf("test2json: %w", err)
		}
		switch top := e.Test != "" && !strings.Contains(e.Test, "/"); {
		case e.Action == "run":
			res.ran[e.Test] = true
		case e.Action == "output":
			outputs[e.Test] += e.Output
		case e.Action == "skip" && e.Test != "":
			res.skipped[e.Test] = reason(outputs[e.Test])
		case e.Action == "pass" && top:
			res.passed++
		case e.Action == "fail" && top:
			res.failed++
			fallthrough
		case e.Action == "fail":
			res.output += outputs[e.Test]
		}
	}
	res.output += outputs[""]
	return res, nil
}

// reason is what a test said before it skipped, without the file and line.
func reason(output string) string {
	said := ""
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			said = line
		}
	}
	if _, text, ok := strings.Cut(said, ": "); ok {
		return text
	}
	return said
}

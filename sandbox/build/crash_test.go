package build

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"naru/sandbox/image"
)

// crashEnv makes this test binary a builder that is going to be killed.
const crashEnv = "NARU_BUILD_TEST_CRASH"

type crashConfig struct {
	Dir, Context string
	Limit        int64
}

func crashBuild(text string) {
	var c crashConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		panic(err)
	}
	store, err := image.Open(filepath.Join(c.Dir, "images"))
	if err != nil {
		panic(err)
	}
	runs, steps := 0, []Step{}
	b := New(store, chrootExecutor{filepath.Join(c.Dir, "mnt"), &runs, &steps}, filepath.Join(c.Dir, "cache"))
	if _, err := b.Build(context.Background(), Options{Context: c.Context, Out: os.Stdout, Tags: []string{"crash:1"}, CacheLimit: c.Limit}); err != nil {
		panic(err)
	}
}

// TestKilled kills a builder at each line that it prints. The next one must
// find nothing but good layers, and leave nothing behind.
func TestKilled(t *testing.T) {
	files := map[string]string{"Dockerfile": "FROM base AS a\nCOPY . /x/\nRUN for i in 1 2 3; do echo $i >>/y; echo $i; done\nWORKDIR /w\nADD a.tar /t/\nFROM base\nCOPY --from=a / /all/\nRUN cat /all/y >/z; echo end\n"}
	files["a.tar"] = string(makeTar(t, tarEntry{name: "in", kind: '0', mode: 0o644, data: "A"}))
	for i := range 50 {
		files[fmt.Sprintf("d%d/f%d", i%5, i)] = fmt.Sprint(i)
	}
	w := newWorld(t)
	o := Options{Context: w.context(files)}
	config, err := json.Marshal(crashConfig{Dir: w.dir, Context: o.Context})
	must(t, err)
	for line := 1; ; line++ {
		killed := killAt(t, string(config), line)
		if w.store, err = image.Open(filepath.Join(w.dir, "images")); err != nil {
			t.Fatal(err)
		}
		if list, err := os.ReadDir(filepath.Join(w.dir, "images/tmp")); err != nil || len(list) > 0 {
			t.Fatalf("line %d: left in tmp: %v, %v", line, list, err)
		}
		if line%4 == 0 || !killed { // now and then; otherwise the next one goes on
			img, log := w.mustBuild(o)
			for p, want := range map[string]string{"z": "f 644 0:0 1\n2\n3\n", "all/t/in": "f 644 0:0 A", "all/x/d4/f49": "f 644 0:0 49", "all/w": "d 755 0:0"} {
				if got := w.look(img, p); got != want {
					t.Fatalf("line %d: %s is %q, want %q\n%s", line, p, got, want, log)
				}
			}
			must(t, os.RemoveAll(filepath.Join(w.dir, "cache/steps")))
		}
		if !killed {
			return
		}
	}
}

// killAt starts a builder and kills it at a line of its output. It reports false
// if the builder came to its end before.
func killAt(t *testing.T, config string, line int) bool {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{crashEnv + "=" + config}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	n := 0
	for n < line && lines.Scan() {
		n++
	}
	if n < line {
		must(t, cmd.Wait())
		return false
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	return true
}

// TestKilledAnywhere kills builders at moments that nobody chose, while they
// evict what earlier ones made. What is left must be good for the next one, in
// which nothing is wrong and nothing runs that was remembered.
func TestKilledAnywhere(t *testing.T) {
	w := newWorld(t)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 12 {
		o := Options{CacheLimit: 12 << 20, Tags: []string{"crash:1"}, Context: w.context(map[string]string{"a": fmt.Sprint(i), "Dockerfile": fmt.Sprintf(
			"FROM base AS x\nRUN yes %d | head -c 3000000 >/x\nFROM base\nCOPY a /a\nCOPY --from=x /x /x\nRUN head -c 2000000 /x >/y\n", i)})}
		config, err := json.Marshal(crashConfig{Dir: w.dir, Context: o.Context, Limit: o.CacheLimit})
		must(t, err)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{crashEnv + "=" + string(config)}
		must(t, cmd.Start())
		time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond) // the moment is the test
		_ = cmd.Process.Kill()                                         // it may have come to its end
		_ = cmd.Wait()
		if w.store, err = image.Open(filepath.Join(w.dir, "images")); err != nil {
			t.Fatal(err)
		}
		img, log := w.mustBuild(o)
		want := strings.Repeat(fmt.Sprintf("%d\n", i), 2_000_000)[:2_000_000]
		if got := w.look(img, "y"); got != "f 644 0:0 "+want {
			t.Fatalf("%d: /y is wrong\n%s", i, log)
		}
		runs := w.runs
		if w.mustBuild(o); w.runs != runs {
			t.Errorf("%d: the second time something ran", i)
		}
	}
}

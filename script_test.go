package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"naru/bench/stage"
)

// TestScripts runs testdata/script/*.txtar: what a person types, on the real
// program with a data directory of its own for each script. A script finds
//
//	$API $WEB $PORT    free addresses, host:port, for naru.yaml (made here), and the port of $WEB
//	NARU_ROOT NARU_RUN its directories, so that "exec naru …" needs no flags
//
// and in its *.yaml files $WORK, $API, $WEB and $PORT are replaced. Beside testscript's
// own commands it has those of scriptCommands.
func TestScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("starts nginx and containers; not in -short")
	}
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOTMPDIR", t.TempDir()) // testscript leaves an empty folder behind when -run chooses some
	before, err := stage.TakeSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("scripts", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true,
			Setup:     func(env *testscript.Env) error { return setScript(env, dir) },
			Cmds:      scriptCommands,
			Condition: scriptCondition,
		})
	})
	if os.Getuid() != 0 {
		return
	}
	// The kernel takes links and groups away a little later.
	var left error
	for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); time.Sleep(100 * time.Millisecond) {
		now, err := stage.TakeSnapshot(context.WithoutCancel(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		if left = before.Compare(now); left == nil {
			return
		}
	}
	t.Errorf("the machine is not as before: %v", left)
}

// scriptCondition knows "root": containers need it.
func scriptCondition(name string) (bool, error) {
	if name == "root" {
		return os.Getuid() == 0, nil
	}
	return false, fmt.Errorf("unknown condition %q", name)
}

// scriptCommands are the words of the scripts beside testscript's own.
var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"exit":     cmdExit,     // exit CODE COMMAND…: it ends with exactly that code
	"until":    cmdUntil,    // until REGEXP COMMAND…: again and again until the output matches
	"busybox":  cmdBusybox,  // busybox: the image busybox is there
	"push":     cmdPush,     // push DIR [MESSAGE]: DIR's files become a commit in DIR.git; $HEAD
	"serve":    cmdServe,    // serve: an agent runs and is ready; its log is agent.log
	"signal":   cmdSignal,   // signal TERM|KILL|HUP: to that agent; but for HUP it is gone then
	"occupy":   cmdOccupy,   // occupy ADDRESS: until the end of the script, or "free ADDRESS"
	"free":     cmdFree,     // free ADDRESS
	"request":  cmdRequest,  // request [-H 'K: V']… [-d FILE] METHOD URL: status, header, body
	"hook":     cmdHook,     // hook [-secret S] [-to SENDER/APP] EVENT DELIVERY FILE: a signed webhook
	"settings": cmdSettings, // settings FILE: $NAME= for each line NAME=VALUE of FILE
}

// world is what a script has opened.
type world struct {
	dir   string
	mu    sync.Mutex
	agent *exec.Cmd
	ended chan error
	held  map[string]net.Listener
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

func setScript(env *testscript.Env, programs string) error {
	w := &world{dir: env.WorkDir, held: map[string]net.Listener{}}
	env.Values[worldKey{}] = w
	api, web, err := twoAddresses()
	if err != nil {
		return err
	}
	root, run := filepath.Join(w.dir, "root"), filepath.Join(w.dir, "run")
	env.Setenv("API", api)
	env.Setenv("WEB", web)
	env.Setenv("NARU_ROOT", root)
	env.Setenv("NARU_RUN", run)
	env.Setenv("PROGRAMS", programs)
	env.Setenv("PATH", programs+string(os.PathListSeparator)+env.Getenv("PATH")+":/usr/sbin:/sbin")
	env.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	for _, who := range []string{"AUTHOR", "COMMITTER"} {
		env.Setenv("GIT_"+who+"_NAME", "script")
		env.Setenv("GIT_"+who+"_EMAIL", "script@example.com")
	}
	env.Defer(func() { w.end(env) })
	port := web[strings.LastIndexByte(web, ':')+1:]
	text := fmt.Sprintf("listen: %s\nroot: root\nrun: run\napps_dir: apps.d\nnginx: {mode: managed, bind: 127.0.0.1, http: %s}\n", api, port)
	if err := os.MkdirAll(filepath.Join(w.dir, "apps.d"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(w.dir, "naru.yaml"), []byte(text), 0o644); err != nil {
		return err
	}
	return w.fillIn(strings.NewReplacer("$WORK", w.dir, "$API", api, "$WEB", web, "$PORT", port))
}

// fillIn puts the script's paths and addresses into its configurations.
func (w *world) fillIn(r *strings.Replacer) error {
	for _, pattern := range []string{"*.yaml", "*/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(w.dir, pattern))
		if err != nil {
			return err
		}
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err == nil {
				err = os.WriteFile(name, []byte(r.Replace(string(text))), 0o644)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func twoAddresses() (a, b string, err error) {
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	second, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", errors.Join(err, first.Close())
	}
	return first.Addr().String(), second.Addr().String(), errors.Join(first.Close(), second.Close())
}

// end leaves nothing of the script on the machine.
func (w *world) end(env *testscript.Env) {
	for _, l := range w.held {
		_ = l.Close() // a listener without connections
	}
	if err := w.stop(syscall.SIGTERM); err != nil {
		env.T().Log(err)
		_ = w.stop(syscall.SIGKILL) // said by the reset, which needs it gone
	}
	if _, err := os.Stat(filepath.Join(w.dir, "root", "containers")); err != nil {
		return // no engine was ever opened
	}
	reset := exec.Command(filepath.Join(env.Getenv("PROGRAMS"), "naru"), "system", "reset", "--force")
	reset.Env = append(os.Environ(), "NARU_ROOT="+env.Getenv("NARU_ROOT"), "NARU_RUN="+env.Getenv("NARU_RUN"))
	if text, err := reset.CombinedOutput(); err != nil {
		env.T().Log("reset:", err, string(text))
		env.T().FailNow()
	}
}

// stop signals the agent and waits until it is gone.
func (w *world) stop(s syscall.Signal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.agent == nil {
		return nil
	}
	if err := w.agent.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-w.ended:
		w.agent = nil
		return nil
	case <-time.After(20 * time.Second):
		return errors.New("the agent does not end")
	}
}

func wanted(ts *testscript.TestScript, neg bool, ok bool, usage string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", usage)
	}
}

func cmdExit(ts *testscript.TestScript, neg bool, args []string) {
	wanted(ts, neg, len(args) > 1, "exit CODE COMMAND...")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// patience is how long until waits; a schedule needs a minute.
const patience = 70 * time.Second

func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	wanted(ts, neg, len(args) > 1, "until REGEXP COMMAND...")
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	var out bytes.Buffer
	for limit := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		out.Reset()
		cmd := exec.Command(args[1], args[2:]...)
		if path, err := lookIn(ts.Getenv("PATH"), args[1]); err == nil {
			cmd.Path, cmd.Err = path, nil
		}
		cmd.Dir, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), &out, &out
		cmd.Env = append(os.Environ(), "NARU_ROOT="+ts.Getenv("NARU_ROOT"), "NARU_RUN="+ts.Getenv("NARU_RUN"))
		_ = cmd.Run() // what counts is what it says
		if want.Match(out.Bytes()) {
			return
		}
		if time.Now().After(limit) {
			ts.Fatalf("%s never said %q, but\n%s", strings.Join(args[1:], " "), args[0], out.String())
		}
	}
}

// lookIn is exec.LookPath in the script's PATH.
func lookIn(list, name string) (string, error) {
	for _, dir := range filepath.SplitList(list) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

func cmdBusybox(ts *testscript.TestScript, neg bool, args []string) {
	wanted(ts, neg, len(args) == 0, "busybox")
	tarball := ts.MkAbs("busybox.tar")
	ts.Check(stage.BusyboxImage(tarball))
	ts.Check(ts.Exec("naru", "image", "import", tarball, "busybox"))
}

func cmdPush(ts *testscript.TestScript, neg bool, args []string) {
	wanted(ts, neg, len(args) == 1 || len(args) == 2, "push DIR [MESSAGE]")
	dir, bare, message := ts.MkAbs(args[0]), ts.MkAbs(args[0]+".git"), "a change"
	if len(args) == 2 {
		message = args[1]
	}
	var steps [][]string
	if _, err := os.Stat(bare); err != nil {
		steps = [][]string{{"init", "--quiet", "--bare", "--initial-branch=main", bare}, {"-C", dir, "init", "--quiet", "--initial-branch=main"}}
	}
	steps = append(steps, []string{"-C", dir, "add", "--all"}, []string{"-C", dir, "commit", "--quiet", "--allow-empty", "-m", message},
		[]string{"-C", dir, "push", "--quiet", bare, "HEAD:main"})
	for _, step := range steps {
		ts.Check(ts.Exec("git", step...))
	}
	head, err := exec.Command("git", "-C", dir, "rev-parse", "HEAD").Output()
	ts.Check(err)
	ts.Setenv("HEAD", strings.TrimSpace(string(head)))
}

func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	wanted(ts, neg, len(args) == 0, "serve")
	w := worldOf(ts)
	log, err := os.OpenFile(filepath.Join(w.dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	ts.Check(err)
	defer log.Close() // the agent has its own
	cmd := exec.Command(filepath.Join(ts.Getenv("PROGRAMS"), "naru"), "serve", "--config", "naru.yaml")
	cmd.Dir, cmd.Stdout, cmd.Stderr = w.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ts.Check(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	w.agent, w.ended = cmd, ended
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if resp, err := http.Get("http://" + ts.Getenv("API") + "/readyz"); err == nil {
			_ = resp.Body.Close() // nothing of it is read
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case err := <-ended:
			ended <- err
			ts.Fatalf("the agent ended: %v\n%s", err, ts.ReadFile("agent.log"))
		default:
		}
		if time.Now().After(limit) {
			ts.Fatalf("the agent is not ready\n%s", ts.ReadFile("agent.log"))
		}
	}
}

func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	wanted(ts, neg, len(args) == 1 && w.agent != nil, "signal TERM|KILL|HUP, with an agent")
	switch args[0] {
	case "HUP":
		ts.Check(w.agent.Process.Signal(syscall.SIGHUP))
	case "TERM":
		ts.Check(w.stop(syscall.SIGTERM))
	case "KILL":
		ts.Check(w.stop(syscall.SIGKILL))
	default:
		ts.Fatalf("unknown signal %s", args[0])
	}
}

func cmdOccupy(ts *testscript.TestScript, neg bool, args []string) {
	wanted(ts, neg, len(args) == 1, "occupy ADDRESS")
	l, err := net.Listen("tcp", args[0])
	ts.Check(err)
	worldOf(ts).held[args[0]] = l
}

func cmdFree(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	wanted(ts, neg, len(args) == 1 && w.held[args[0]] != nil, "free ADDRESS, which is occupied")
	ts.Check(w.held[args[0]].Close())
	delete(w.held, args[0])
}

func cmdRequest(ts *testscript.TestScript, neg bool, args []string) {
	header, body := http.Header{}, []byte(nil)
	for len(args) > 2 {
		switch args[0] {
		case "-H":
			key, value, _ := strings.Cut(args[1], ": ")
			header.Add(key, value)
		case "-d":
			body = []byte(ts.ReadFile(args[1]))
		}
		args = args[2:]
	}
	wanted(ts, neg, len(args) == 2, "request [-H 'KEY: VALUE']... [-d FILE] METHOD URL")
	send(ts, args[0], args[1], header, body)
}

// send asks once and makes the answer the script's standard output.
func send(ts *testscript.TestScript, method, url string, header http.Header, body []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	ts.Check(err)
	req.Header, req.Host = header, header.Get("Host")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), resp.Status)
	ts.Check(resp.Header.Write(ts.Stdout()))
	fmt.Fprintf(ts.Stdout(), "\n%s\n", text)
}

func cmdHook(ts *testscript.TestScript, neg bool, args []string) {
	secret, to := "hunter2", "github/web"
	for len(args) > 4 {
		switch args[0] {
		case "-secret":
			secret = args[1]
		case "-to":
			to = args[1]
		}
		args = args[2:]
	}
	wanted(ts, neg, len(args) == 3, "hook [-secret S] [-to SENDER/APP] EVENT DELIVERY FILE")
	body := []byte(strings.ReplaceAll(ts.ReadFile(args[2]), "$HEAD", ts.Getenv("HEAD")))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	send(ts, http.MethodPost, "http://"+ts.Getenv("API")+"/webhooks/"+to, http.Header{
		"Content-Type": {"application/json"}, "X-Github-Event": {args[0]}, "X-Github-Delivery": {args[1]},
		"X-Hub-Signature-256": {"sha256=" + hex.EncodeToString(mac.Sum(nil))},
	}, body)
}

func cmdSettings(ts *testscript.TestScript, neg bool, args []string) {
	wanted(ts, neg, len(args) == 1, "settings FILE")
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			ts.Setenv(key, value)
		}
	}
}

// Package stage sets up a whole naru on loopback, for the demo, the end-to-end
// tests and the measurements: an agent with a root of its own under a temporary
// folder, a base image made from the machine's static busybox, a bare git
// repository, and a small app of two replicas in it.
//
//	s, err := stage.New(ctx, stage.Options{Naru: "bin/naru"})
//	defer s.CleanUp(ctx)
//	err = s.Serve(ctx)            // the agent answers
//	err = s.Push(ctx, "v1")       // a commit in the bare repository
//	id, err := s.Deliver(ctx)     // a signed GitHub push
//	d, err := s.Wait(ctx, id)     // it ended
//	text, err := s.Answer(ctx)    // what nginx serves
//
// The agent is the real binary in a process of its own, so it can be killed.
package stage

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Options says what is put on the stage.
type Options struct {
	Naru string // the binary
	App  string // the app's program, static; "" builds it with the go command
	Dir  string // an empty folder, "" makes a temporary one
	// Dockerfile is the text of the app's Dockerfile.
	Dockerfile []byte
	// Interval is the time between two health checks; 0 means 100 ms.
	Interval time.Duration
	// Bake is how long a new release is watched before it is live; 0: not.
	Bake time.Duration
}

// Stage is one naru with one app.
type Stage struct {
	Dir    string
	API    string // address of the agent, host:port
	HTTP   string // address of nginx, host:port
	Host   string // the app's domain
	Secret string

	opt   Options
	agent *exec.Cmd
	ended chan error
	head  string // newest pushed commit
	seq   int    // deliveries
}

// Deployment is what the agent says of one.
type Deployment struct {
	ID    string `json:"id"`
	State string `json:"state"`
	Step  string `json:"step"`
	Error string `json:"error"`
	Steps []struct {
		Name  string `json:"name"`
		Phase string `json:"phase"`
	} `json:"steps"`
}

// Final reports whether the deployment has ended.
func (d Deployment) Final() bool { return d.State != "queued" && d.State != "running" }

// New makes the folder with the config, the base image and the repository.
func New(ctx context.Context, o Options) (*Stage, error) {
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", stagePrefix)
		if err != nil {
			return nil, err
		}
		o.Dir = dir
	}
	if o.Interval == 0 {
		o.Interval = 100 * time.Millisecond
	}
	s := &Stage{Dir: o.Dir, Host: "shop.example", Secret: "a-secret-of-the-stage", opt: o}
	for _, step := range []func(context.Context) error{s.addresses, s.writeConfig, s.baseImage, s.repository} {
		if err := step(ctx); err != nil {
			return s, err
		}
	}
	return s, nil
}

// addresses finds two free ports. They stay free only by luck, so a taken one
// shows as an error of the agent.
func (s *Stage) addresses(ctx context.Context) error {
	for _, a := range []*string{&s.API, &s.HTTP} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		*a = l.Addr().String()
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stage) path(elem ...string) string {
	return filepath.Join(append([]string{s.Dir}, elem...)...)
}

// Root and Run are the agent's data and run directories.
func (s *Stage) Root() string { return s.path("root") }

// Run is the agent's run directory.
func (s *Stage) Run() string { return s.path("run") }

func (s *Stage) writeConfig(context.Context) error {
	if err := os.MkdirAll(s.path("apps.d"), 0o755); err != nil {
		return err
	}
	agent := fmt.Sprintf(`listen: %s
root: %s
run: %s
apps_dir: apps.d
nginx: {mode: managed, bind: 127.0.0.1, http: %s}
`, s.API, s.Root(), s.Run(), s.HTTP[strings.LastIndex(s.HTTP, ":")+1:])
	app := fmt.Sprintf(`name: shop
source: {repo: "file://%s", branch: main}
processes:
  web:
    port: 8080
    replicas: 2
    health: {path: /healthz, interval: %s, timeout: 2s, healthy: 2, deadline: 5s}
    resources: {memory: 64m, cpus: 1, pids: 64}
route: {domains: [%s]}
deploy: {bake: %s}
triggers:
  webhook: {sender: github, secret_file: %s}
`, s.path("shop.git"), s.opt.Interval, s.Host, s.opt.Bake, s.path("secret"))
	return errors.Join(
		os.WriteFile(s.path("naru.yaml"), []byte(agent), 0o644),
		os.WriteFile(s.path("secret"), []byte(s.Secret), 0o600),
		os.WriteFile(s.path("apps.d", "shop.yaml"), []byte(app), 0o644))
}

func (s *Stage) baseImage(ctx context.Context) error {
	tarball := s.path("busybox.tar")
	if err := BusyboxImage(tarball); err != nil {
		return err
	}
	_, err := s.Naru(ctx, "image", "import", tarball, "busybox:latest")
	return err
}

// Naru runs one command of the binary on the stage's root.
func (s *Stage) Naru(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.opt.Naru, append([]string{"--root", s.Root(), "--run", s.Run()}, args...)...)
	return output(cmd)
}

func output(cmd *exec.Cmd) (string, error) {
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(text.String()))
	}
	return out.String(), nil
}

// repository makes the bare repository, and a clone to commit in.
func (s *Stage) repository(ctx context.Context) error {
	program := s.opt.App
	if program == "" {
		program = s.path("shop")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "naru/scripts/demo/app")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if _, err := output(build); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := s.git(ctx, s.Dir, "init", "--quiet", "--bare", "--initial-branch=main", "shop.git"); err != nil {
		return err
	}
	if err := s.git(ctx, s.Dir, "clone", "--quiet", "shop.git", "work"); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(s.path("work", "shop"), text, 0o755),
		os.WriteFile(s.path("work", "Dockerfile"), s.opt.Dockerfile, 0o644),
		os.WriteFile(s.path("work", ".dockerignore"), []byte(".git\n"), 0o644))
}

func (s *Stage) git(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=stage", "GIT_AUTHOR_EMAIL=stage@example.com", "GIT_COMMITTER_NAME=stage", "GIT_COMMITTER_EMAIL=stage@example.com")
	_, err := output(cmd)
	return err
}

// Push commits a version of the app and pushes it to the bare repository.
func (s *Stage) Push(ctx context.Context, version string) error {
	work := s.path("work")
	if err := os.WriteFile(filepath.Join(work, "VERSION"), []byte(version+"\n"), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{{"add", "--all"}, {"commit", "--quiet", "-m", "shop " + version}, {"push", "--quiet", "origin", "HEAD:main"}} {
		if err := s.git(ctx, work, args...); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "git", "rev-parse", "HEAD")
	cmd.Dir = work
	head, err := output(cmd)
	s.head = strings.TrimSpace(head)
	return err
}

// Serve starts the agent and returns when it is ready. Further environment
// variables may set a failpoint.
func (s *Stage) Serve(ctx context.Context, env ...string) error {
	logFile, err := os.OpenFile(s.path("agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close() // the child has its own
	// Not CommandContext: the agent ends by Kill, Terminate or CleanUp.
	s.agent = exec.Command(s.opt.Naru, "serve", "--config", s.path("naru.yaml"))
	s.agent.Stdout, s.agent.Stderr = logFile, logFile
	s.agent.Env = append(os.Environ(), env...)
	// A signal to the terminal's group is ours to pass on.
	s.agent.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.agent.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	s.ended = ended
	go func(cmd *exec.Cmd) { ended <- cmd.Wait() }(s.agent)
	return s.ready(ctx)
}

func (s *Stage) ready(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return poll(limit, 20*time.Millisecond, func() error {
		select {
		case err := <-s.ended:
			s.ended <- err
			return &finalError{fmt.Errorf("the agent ended: %v\n%s", err, s.tail())}
		default:
		}
		_, err := s.get(limit, "/readyz")
		return err
	})
}

func (s *Stage) tail() string {
	text, err := os.ReadFile(s.path("agent.log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// Log returns the last lines of the agent's log.
func (s *Stage) Log() string { return s.tail() }

// Kill ends the agent as a crash would, and returns when it is gone.
func (s *Stage) Kill() error {
	if s.agent == nil {
		return nil
	}
	if err := s.agent.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return s.Ended(time.Minute)
}

// Ended waits until the agent is gone, whoever ended it.
func (s *Stage) Ended(limit time.Duration) error {
	select {
	case err := <-s.ended:
		s.ended <- err
		return nil
	case <-time.After(limit):
		return errors.New("the agent does not end")
	}
}

// Deliver sends a signed GitHub push of the newest commit, and returns the id
// of the deployment that it asked for.
func (s *Stage) Deliver(ctx context.Context) (string, error) {
	s.seq++
	body, err := json.Marshal(map[string]any{
		"ref": "refs/heads/main", "after": s.head, "before": strings.Repeat("0", 40), "deleted": false,
		"repository":  map[string]any{"full_name": "acme/shop", "clone_url": "file://" + s.path("shop.git")},
		"pusher":      map[string]any{"name": "stage"},
		"head_commit": map[string]any{"id": s.head, "message": "shop"},
	})
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, []byte(s.Secret))
	mac.Write(body)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.API+"/webhooks/github/shop", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-GitHub-Event", "push")
	req.Header.Set("X-GitHub-Delivery", fmt.Sprintf("stage-%d-%d", os.Getpid(), s.seq))
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	var got struct {
		Deployment string `json:"deployment"`
	}
	if resp.StatusCode != http.StatusAccepted {
		return "", fmt.Errorf("webhook: %s: %s", resp.Status, text)
	}
	if err := json.Unmarshal(text, &got); err != nil || got.Deployment == "" {
		return "", fmt.Errorf("webhook answered %q: %w", text, err)
	}
	return got.Deployment, nil
}

// Wait returns the deployment when it has ended.
func (s *Stage) Wait(ctx context.Context, id string) (d Deployment, err error) {
	err = poll(ctx, 20*time.Millisecond, func() error {
		if d, err = s.Deployment(ctx, id); err != nil {
			return err
		}
		if !d.Final() {
			return fmt.Errorf("deployment %s is %s in %s", id, d.State, d.Step)
		}
		return nil
	})
	return d, err
}

// Deployment asks the agent, over its unix socket, for one deployment.
func (s *Stage) Deployment(ctx context.Context, id string) (d Deployment, err error) {
	text, err := s.get(ctx, "/api/v1/deployments/"+id)
	if err != nil {
		return d, err
	}
	return d, json.Unmarshal(text, &d)
}

// get asks the agent over its unix socket.
func (s *Stage) get(ctx context.Context, path string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.Run(), "naru.sock"))
		},
	}}
	return get(ctx, &client, "http://naru"+path, "")
}

func get(ctx context.Context, c *http.Client, url, host string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Host = host
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path(url), resp.Status, bytes.TrimSpace(text))
	}
	return text, err
}

func path(url string) string { return url[strings.Index(url, "//")+2:] }

// Answer asks nginx for the app, once, and returns what came back.
func (s *Stage) Answer(ctx context.Context) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	text, err := get(ctx, &client, "http://"+s.HTTP+"/", s.Host)
	return strings.TrimSpace(string(text)), err
}

// Serves returns when nginx answers with the version.
func (s *Stage) Serves(ctx context.Context, version string) error {
	return poll(ctx, 20*time.Millisecond, func() error {
		got, err := s.Answer(ctx)
		if err == nil && got != version {
			err = fmt.Errorf("%q answers, not %q", got, version)
		}
		return err
	})
}

// CleanUp ends the agent, removes everything of its root from the machine and
// the folder.
func (s *Stage) CleanUp(ctx context.Context) error {
	if s.agent != nil {
		if err := s.agent.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		if err := s.Ended(30 * time.Second); err != nil {
			return errors.Join(err, s.Kill())
		}
	}
	if _, err := s.Naru(ctx, "system", "reset", "--force"); err != nil {
		return err
	}
	return os.RemoveAll(s.Dir)
}

// finalError ends a poll at once.
type finalError struct{ error }

// poll calls f until it returns nil, a finalError, or ctx ends.
func poll(ctx context.Context, every time.Duration, f func() error) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		err := f()
		var final *finalError
		if err == nil || errors.As(err, &final) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-t.C:
		}
	}
}

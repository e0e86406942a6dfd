package sandbox

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"naru/sandbox/build"
	"naru/sandbox/image"
)

// writeContext makes a build context; "name@" is a link to its content.
func writeContext(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		p := filepath.Join(dir, strings.TrimSuffix(name, "@"))
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		if strings.HasSuffix(name, "@") {
			err = errors.Join(err, os.Symlink(data, p))
		} else {
			err = errors.Join(err, os.WriteFile(p, []byte(data), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// buildIn builds with the engine, without network unless o has one.
func buildIn(t testing.TB, e *Engine, o build.Options) (image.Image, string, error) {
	t.Helper()
	var log bytes.Buffer
	o.Out = &log
	if o.Network == "" {
		o.Network = NetworkNone
	}
	img, err := e.Build(t.Context(), o)
	return img, log.String(), err
}

// inLayers lists the paths in an image's layers above the base.
func inLayers(t testing.TB, e *Engine, img image.Image) string {
	t.Helper()
	lower, err := e.Images().Lower(img)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, dir := range lower[1:] {
		err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
			if p != dir {
				list = append(list, strings.TrimPrefix(p, dir+"/"))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return strings.Join(list, " ")
}

// TestBuildMounts: every kind of --mount shows what it should, writes go where they
// belong, and the layer holds what the command has made and nothing else.
func TestBuildMounts(t *testing.T) {
	e := newEngine(t)
	secrets := map[string][]byte{"token": []byte("hush-hush-value"), "two": []byte("line one is long\nline two is long\n")}
	for name, c := range map[string]struct {
		file   string // after FROM busybox
		ctx    map[string]string
		want   string // in the output, regexp
		not    string // not in the output
		layers string // all new paths
		err    string
	}{
		"bind of the context":              {file: "RUN --mount=target=/src cat /src/a && stat -c '%u:%g %a' /src/a /src", ctx: map[string]string{"a": "AAA\n"}, want: `AAA(?s:.*)0:0 644(?s:.*)0:0 755`},
		"bind is read only":                {file: "RUN --mount=type=bind,target=/src ! touch /src/x", want: "Read-only"},
		"bind rw is thrown away":           {file: "RUN --mount=type=bind,target=/src,rw echo new > /src/x && echo more >> /src/a && cat /src/a\nRUN --mount=target=/src ls /src", ctx: map[string]string{"a": "AAA\n"}, want: "more(?s:.*)Dockerfile\n(?s:.*) a\n", not: " x\n"},
		"bind without what is ignored":     {file: "RUN --mount=target=/src ls -a /src", ctx: map[string]string{"a": "", "keep/secret": "", "secret": "", ".dockerignore": "**/secret\n"}, want: " keep\n", not: " secret\n"},
		"bind of a file":                   {file: "RUN --mount=source=d/a,target=/deep/er/a cat /deep/er/a; stat -c 'is %F' /deep/er/a", ctx: map[string]string{"d/a": "AAA\n"}, want: "AAA(?s:.*)is regular file"},
		"bind of a missing file":           {file: "RUN --mount=source=none,target=/x true", err: "source=none"},
		"bind of an ignored file":          {file: "RUN --mount=source=x,target=/x true", ctx: map[string]string{"x": "", ".dockerignore": "x\n"}, err: ".dockerignore"},
		"bind relative to WORKDIR":         {file: "WORKDIR /w\nRUN --mount=target=. cat a && pwd", ctx: map[string]string{"a": "AAA\n"}, want: "AAA(?s:.*)/w", layers: "w"},
		"bind from an image":               {file: "RUN --mount=from=busybox,source=/srv/data,target=/x stat -c '%u %a' /x/seed && cat /x/seed", want: "1000 600(?s:.*)seed"},
		"bind from a stage":                {file: "RUN mkdir /o && echo made > /o/f && ln -s o /l && ln -s /etc/passwd /o/p\nFROM busybox\nRUN --mount=from=0,source=/l,target=/x cat /x/f; stat -c %N /x/p\nRUN --mount=from=0,source=/o/f,target=/one cat /one", want: "made(?s:.*)/etc/passwd(?s:.*)made"},
		"bind rw from a stage":             {file: "RUN mkdir /o && echo made > /o/f\nFROM busybox\nRUN --mount=from=0,source=/o,target=/x,rw rm /x/f && echo gone > /x/g\nRUN --mount=from=0,source=/o,target=/x cat /x/f && ! ls /x/g", want: "made"},
		"bind of a link out of a stage":    {file: "RUN ln -s /../../../../../../../etc/shadow /l\nFROM busybox\nRUN --mount=from=0,source=/l,target=/x cat /x", err: "no such file"},
		"bind of a link out of a context":  {file: "RUN --mount=source=l,target=/x true", ctx: map[string]string{"l@": "/etc/hostname"}, err: "not in the build context"},
		"two binds, one in the other":      {file: "RUN --mount=source=b,target=/m/e,type=bind --mount=target=/m,type=tmpfs cat /m/e/f", ctx: map[string]string{"b/f": "BBB\n"}, want: "BBB"},
		"tmpfs":                            {file: "RUN --mount=type=tmpfs,target=/t,size=1m ! dd if=/dev/zero of=/t/f bs=64k count=20 2>/dev/null; stat -c '%s' /t/f; grep ' /t ' /proc/mounts", want: "1048576(?s:.*)size=1024k"},
		"tmpfs on a directory hides it":    {file: "RUN --mount=type=tmpfs,target=/srv ls /srv/ && touch /srv/x\nRUN ls /srv", not: " x\n", want: "data"},
		"secret":                           {file: "RUN --mount=type=secret,id=token test $(cat /run/secrets/token | wc -c) = 15; stat -c '%a %u' /run/secrets/token; cat /run/secrets/token", want: `400 0(?s:.*)\*\*\*`, not: "hush"},
		"secret of a user":                 {file: "RUN --mount=type=secret,id=token,target=/a/b,mode=0440,uid=1000,gid=2000 stat -c '%a %u %g' /a/b", want: "440 1000 2000"},
		"secret as a variable":             {file: "RUN --mount=type=secret,id=token,env=TOK test ${#TOK} = 15 && test ! -e /run/secrets/token && env | grep TOK", want: `TOK=\*\*\*`, not: "hush"},
		"secret as both":                   {file: "RUN --mount=type=secret,id=token,env=TOK,target=/s test \"$TOK\" = \"$(cat /s)\" && echo same", want: "same"},
		"secret in pieces":                 {file: "RUN --mount=type=secret,id=token,env=TOK for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do printf %s \"$TOK\" | cut -c$i | tr -d '\\n'; done; echo; printf \"%s\\n\" \"$TOK\" >&2", want: `\*\*\*`, not: "hush"},
		"secret of several lines":          {file: "RUN --mount=type=secret,id=two cat /run/secrets/two; sed 's/^/x /' /run/secrets/two", want: `\*\*\*`, not: "is long"},
		"secret that is not there":         {file: "RUN --mount=type=secret,id=none test ! -e /run/secrets/none && echo fine", want: "fine"},
		"secret that is required":          {file: "RUN --mount=type=secret,id=none,required true", err: `--mount=type=secret,target=/run/secrets/none: required: the build was given no secret "none"`},
		"secret is gone in the next":       {file: "RUN --mount=type=secret,id=token true\nRUN test ! -e /run/secrets && echo none", want: "none"},
		"agent that is required":           {file: "RUN --mount=type=ssh,required true", err: "required"},
		"agent that is not there":          {file: "RUN --mount=type=ssh test -z \"$SSH_AUTH_SOCK\" && echo none", want: "none"},
		"cache":                            {file: "RUN --mount=type=cache,target=/c touch /c/f; stat -c '%a %u' /c\nRUN --mount=type=cache,target=/c,ro ls /c && ! touch /c/x", want: "755 0(?s:.*) f\n"},
		"cache by id":                      {file: "RUN --mount=type=cache,target=/c,id=k touch /c/f\nRUN --mount=type=cache,target=/d,id=k ls /d\nRUN --mount=type=cache,target=/d ls /d/ | grep -c . || true", want: " f\n(?s:.*) 0\n"},
		"cache with mode":                  {file: "RUN --mount=type=cache,target=/c,id=m,mode=0770,uid=1000,gid=2000 stat -c '%a %u %g' /c", want: "770 1000 2000"},
		"cache that begins with files":     {file: "RUN --mount=type=cache,target=/c,id=from,from=busybox,source=/srv/data cat /c/seed && stat -c '%u %a' /c/seed && echo x >> /c/seed\nRUN --mount=type=cache,target=/c,id=from,from=busybox,source=/srv/data cat /c/seed", want: "seed(?s:.*)1000 600(?s:.*) x\n"},
		"cache whose id is a path":         {file: "RUN --mount=type=cache,target=/c,id=../../../../etc touch /c/f && ls /c", want: " f\n"},
		"cache twice":                      {file: "RUN --mount=type=cache,target=/c,id=w,sharing=locked --mount=type=cache,target=/d,id=w,sharing=locked touch /c/f && ls /d", want: " f\n"},
		"cache in a heredoc":               {file: "RUN --mount=type=cache,target=/root/.cache <<E\nmkdir -p /root/.cache/a\ntouch /root/.cache/a/b /root/keep\nE", layers: "root root/keep"},
		"variables in options":             {file: "ARG T=/from/arg\nRUN --mount=type=tmpfs,target=$T grep -c \" $T \" /proc/mounts", want: " 1\n"},
		"target / is refused":              {file: "RUN --mount=target=/ true", err: "target / is the whole"},
		"target in /proc is refused":       {file: "RUN --mount=type=tmpfs,target=/proc/sys true", err: "target: not in /proc"},
		"size of a bind":                   {file: "RUN --mount=target=/x,size=1m true", err: "size"},
		"env of a cache":                   {file: "RUN --mount=type=cache,target=/x,env=X true", err: "env has no meaning"},
		"from of a tmpfs":                  {file: "RUN --mount=type=tmpfs,target=/x,from=busybox true", err: "from has no meaning"},
		"source of an empty cache":         {file: "RUN --mount=type=cache,target=/x,source=/y true", err: "source=/y"},
		"file as the begin of a cache":     {file: "RUN --mount=type=cache,target=/x,from=busybox,source=/etc/passwd true", err: "no directory"},
		"a directory on a file":            {file: "RUN --mount=target=/etc/passwd true", err: "not a directory"},
		"uid that no layer can hold":       {file: "RUN --mount=type=cache,target=/x,uid=70000 true", err: "70000"},
		"mount point is made a link":       {file: "RUN --mount=type=tmpfs,target=/made/here true\nRUN rm -rf /made; ln -s /etc /made\nRUN --mount=type=tmpfs,target=/made/here touch /made/passwd.new", layers: "made etc etc/passwd.new"},
		"mount point through a link":       {file: "RUN ln -s /../../../../tmp /l\nRUN --mount=type=tmpfs,target=/l/x touch /l/x/y && ls -d /tmp/x", want: "/tmp/x", layers: "l"},
		"file left in a made directory":    {file: "RUN --mount=type=tmpfs,target=/new/dir touch /new/own", layers: "new new/own"},
		"nothing is left of anything else": {file: "RUN --mount=target=/src --mount=type=cache,target=/c/d/e --mount=type=secret,id=token,target=/etc/sub/token --mount=type=tmpfs,target=/usr/x true", layers: ""},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"Dockerfile": "FROM busybox\n" + strings.ReplaceAll(c.file, "wc -c", "wc -c")}
			for k, v := range c.ctx {
				files[k] = v
			}
			img, log, err := buildIn(t, e, build.Options{Context: writeContext(t, files), Secrets: secrets, NoCache: true, Owner: t.Name()})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			if ok, _ := regexp.MatchString(c.want, log); !ok {
				t.Errorf("output %s\nwant %s", log, c.want)
			}
			if c.not != "" && strings.Contains(log, c.not) {
				t.Errorf("output %s\nhas %q", log, c.not)
			}
			if !strings.Contains(c.file, "FROM") && (c.layers != "" || !strings.Contains(c.file, "touch")) {
				if got := inLayers(t, e, img); got != c.layers {
					t.Errorf("the layers have %q, want %q", got, c.layers)
				}
			}
			if data, err := filepath.Glob(filepath.Join(e.root, "images", "tmp", "*")); err != nil || len(data) > 0 {
				t.Errorf("left: %v, %v", data, err)
			}
		})
	}
}

// TestBuildMountKeys: a step is made again exactly when something changed that it can
// see, and values of secrets are nowhere.
func TestBuildMountKeys(t *testing.T) {
	e := newEngine(t)
	const value = "the-secret-value"
	base := func() build.Options {
		return build.Options{
			Context: writeContext(t, map[string]string{"Dockerfile": "FROM busybox AS s\nARG V=1\nRUN echo same > /f; echo $V > /v\nFROM busybox\n" +
				"RUN --mount=target=/src,source=d --mount=from=s,source=/f,target=/g --mount=type=secret,id=tok,env=T --mount=type=cache,target=/c echo ran $(cat /src/a); echo $T > /leak; rm /leak\n", "d/a": "A", "other": "x"}),
			Secrets: map[string][]byte{"tok": []byte(value)},
		}
	}
	ran := func(o build.Options) bool {
		t.Helper()
		_, log, err := buildIn(t, e, o)
		if err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		return regexp.MustCompile(`\d ran [AB]`).MatchString(log)
	}
	if !ran(base()) || ran(base()) {
		t.Error("the second build ran again")
	}
	for name, c := range map[string]struct {
		change func(o *build.Options)
		want   bool
	}{
		"a file beside the bind":                {func(o *build.Options) { put(t, o.Context, "other", "y") }, false},
		"a file in the bind":                    {func(o *build.Options) { put(t, o.Context, "d/a", "B") }, true},
		"a mode in the bind":                    {func(o *build.Options) { must(t, os.Chmod(filepath.Join(o.Context, "d/a"), 0o600)) }, true},
		"a file of the stage that is not bound": {func(o *build.Options) { o.Args = map[string]string{"V": "2"} }, false},
		"the value of a secret":                 {func(o *build.Options) { o.Secrets = map[string][]byte{"tok": []byte("renewed")} }, false},
		"whether there is a secret":             {func(o *build.Options) { o.Secrets = nil }, true},
		"the owner of the caches":               {func(o *build.Options) { o.Owner = "app" }, true},
	} {
		o := base()
		c.change(&o)
		if got := ran(o); got != c.want {
			t.Errorf("%s: ran %v, want %v", name, got, c.want)
		}
	}
	err := filepath.WalkDir(e.root, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		if bytes.Contains(data, []byte(value)) {
			t.Errorf("%s holds the secret", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func put(t testing.TB, dir, name, data string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestBuildCacheSharing: what steps of several builds at once get of one cache.
func TestBuildCacheSharing(t *testing.T) {
	e := newEngine(t)
	// Each step leaves a mark, waits to see another's, and takes its own away.
	const script = `RUN --mount=type=cache,target=/c,id=ID,sharing=MODE touch /c/$(hostname).$N; i=0; while [ $i -lt 40 ] && [ $(ls /c | grep -c .) -lt 2 ]; do sleep 0.01; i=$((i+1)); done; echo saw $(ls /c | grep -c .); rm /c/*.$N`
	for mode, want := range map[string]string{"shared": "saw 2", "locked": "saw 1", "private": "saw 1"} {
		logs := make([]string, 2)
		var wg sync.WaitGroup
		for i := range logs {
			wg.Go(func() {
				file := strings.NewReplacer("MODE", mode, "ID", mode, "$N", string(rune('a'+i))).Replace("FROM busybox\n" + script)
				dir := writeContext(t, map[string]string{"Dockerfile": file})
				_, log, err := buildIn(t, e, build.Options{Context: dir})
				if err != nil {
					t.Errorf("%v\n%s", err, log)
				}
				logs[i] = log
			})
		}
		wg.Wait()
		if !strings.Contains(logs[0]+logs[1], want) || mode != "shared" && strings.Contains(logs[0]+logs[1], "saw 2") {
			t.Errorf("%s: %s\n%s", mode, logs[0], logs[1])
		}
	}
	b := e.Builder()
	list, err := b.CacheMounts()
	if err != nil || len(list) != 4 { // private had one each
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := b.PruneCacheMounts(t.Context(), func(c build.CacheMount) bool { return c.ID == "locked" }); err != nil {
		t.Error(err)
	}
	if list, err = b.CacheMounts(); err != nil || len(list) != 1 || list[0].ID != "locked" || list[0].Bytes == 0 || list[0].Used.IsZero() {
		t.Errorf("after the prune %+v, %v", list, err)
	}
}

// TestBuildAgent: a step signs by an agent whose keys it cannot change.
func TestBuildAgent(t *testing.T) {
	e := newEngine(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	block, err := ssh.MarshalPrivateKey(key, "")
	must(t, err)
	file := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	dir := writeContext(t, map[string]string{"client": string(self), "Dockerfile": `FROM busybox
RUN --mount=type=ssh,mode=0666,uid=1000 stat -c '%F %a %u' $SSH_AUTH_SOCK; echo at $SSH_AUTH_SOCK
RUN --mount=type=ssh --mount=target=/src sh /src/client.sh
RUN test ! -e /run
`, "client.sh": "cat /src/client > /tmp/client; chmod 755 /tmp/client; " + agentEnv + "=1 /tmp/client; rm /tmp/client"})
	_, log, err := buildIn(t, e, build.Options{Context: dir, SSH: map[string][]string{"default": {file}}})
	if err != nil || !strings.Contains(log, "socket 666 1000") || !strings.Contains(log, "at /run/buildkit/ssh_agent.0") {
		t.Errorf("%v\n%s", err, log)
	}
	if strings.Contains(log, "/tmp/client: not found") {
		t.Skip("the client is this test's own binary, which only CGO_ENABLED=0 makes static")
	}
	if !strings.Contains(log, "keys 1, signed true, removed false, keys 1") {
		t.Errorf("the client of the agent said\n%s", log)
	}
}

// agentEnv makes this test binary a client of an agent, in a step.
const agentEnv = "NARU_TEST_AGENT"

func agentIfAsked() {
	if os.Getenv(agentEnv) == "" {
		return
	}
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	keys := agent.NewClient(conn)
	before, err := keys.List()
	if err != nil || len(before) == 0 {
		fmt.Println("no keys", err)
		os.Exit(1)
	}
	_, signErr := keys.Sign(before[0], []byte("data"))
	removeErr := keys.RemoveAll()
	after, _ := keys.List()
	fmt.Printf("keys %d, signed %v, removed %v, keys %d\n", len(before), signErr == nil, removeErr == nil, len(after))
	os.Exit(0)
}

// TestBuildSecretEncoded: what a step prints of a secret is covered in the usual encodings too.
func TestBuildSecretEncoded(t *testing.T) {
	e := newEngine(t)
	const value = "s3cr3t/value?+\n"
	files := map[string]string{"Dockerfile": "FROM busybox\nRUN --mount=type=secret,id=tok f=/run/secrets/tok; base64 $f; (printf user:; cat $f) | base64; od -An -v -tx1 $f | tr -d ' '; echo done\n"}
	_, log, err := buildIn(t, e, build.Options{Context: writeContext(t, files), Secrets: map[string][]byte{"tok": []byte(value)}})
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if !strings.Contains(log, "done") || strings.Count(log, "***") != 3 || strings.Contains(log, "czNj") || strings.Contains(log, "7333") {
		t.Errorf("got\n%s", log)
	}
}

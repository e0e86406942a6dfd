package source

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	gitssh "github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"golang.org/x/crypto/ssh"

	"naru/internal/redact"
	"naru/pipeline"
)

// maxKeyFile is the largest token, key or known_hosts file read, in bytes.
const maxKeyFile = 1 << 20

// dialTimeout bounds the making of an ssh connection.
const dialTimeout = 30 * time.Second

// remote is the checked form of pipeline.Repo.
type remote struct {
	scheme   string // https, ssh or file
	url      string // as go-git takes it
	user     string // ssh
	host     string // ssh: host:port, as known_hosts is asked
	path     string // file
	branch   string
	repo     pipeline.Repo
	caBundle []byte
}

// scpLike is git's short form of an ssh URL, user@host:path. A path that begins
// with a digit could be taken for a port and needs the long form.
var scpLike = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9._-]*)@([A-Za-z0-9][A-Za-z0-9.-]*):([^:\\\s0-9][^:\\\s]*)$`)
})

// parseRemote allows what is meant to work and nothing else: no http, no git://, no
// helper such as ext::, no option in the place of a host, no credentials in
// the URL, which would end in logs and in the records of deployments.
func parseRemote(repo pipeline.Repo) (remote, error) {
	r := remote{branch: repo.Branch, repo: repo}
	if err := plumbing.NewBranchReferenceName(repo.Branch).Validate(); err != nil || repo.Branch == "" || strings.ContainsAny(repo.Branch, "*:") {
		return r, fmt.Errorf("%.80q is not a branch name", repo.Branch)
	}
	if strings.ContainsFunc(repo.URL, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return r, errors.New("URL has spaces or control characters")
	}
	if m := scpLike().FindStringSubmatch(repo.URL); m != nil {
		r.scheme, r.url, r.user, r.host = "ssh", repo.URL, m[1], net.JoinHostPort(m[2], "22")
		return r, nil
	}
	u, err := url.Parse(repo.URL)
	if err != nil {
		return r, errors.New("URL cannot be parsed") // the error of url.Parse quotes the URL
	}
	if _, password := u.User.Password(); password || u.Scheme == "https" && u.User != nil {
		return r, errors.New("URL must not hold credentials: put the token into a file and name it in source.token_file")
	}
	if u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") == "" || strings.HasPrefix(u.Hostname(), "-") {
		return r, errors.New("URL needs a path, and neither query nor fragment")
	}
	r.scheme, r.url = u.Scheme, repo.URL
	switch u.Scheme {
	case "https":
		if u.Hostname() == "" {
			return r, errors.New("URL needs a host")
		}
	case "ssh":
		return r.parseSSH(u)
	case "file":
		if u.Host != "" || !path.IsAbs(u.Path) {
			return r, errors.New("file URL must be file:///path")
		}
		r.path = u.Path
	default:
		return r, fmt.Errorf("URL scheme %.20q is not allowed; allowed: https, ssh, user@host:path, file", u.Scheme)
	}
	return r, nil
}

func (r remote) parseSSH(u *url.URL) (remote, error) {
	if u.Hostname() == "" {
		return r, errors.New("URL needs a host")
	}
	port := u.Port()
	if port == "" {
		port = "22"
	}
	r.user, r.host = u.User.Username(), net.JoinHostPort(u.Hostname(), port)
	if r.user == "" {
		r.user = gitssh.DefaultUsername
	}
	if strings.HasPrefix(r.user, "-") {
		return r, errors.New("URL has a user that looks like an option")
	}
	return r, nil
}

// access is what one fetch needs beside the URL.
type access struct {
	auth    transport.AuthMethod // nil: none
	secrets []string
}

// open reads the credentials, each time anew so that a changed file counts at once.
func (r remote) open() (access, error) {
	switch r.scheme {
	case "https":
		if r.repo.TokenFile == "" {
			return access{}, nil
		}
		data, err := readFile(r.repo.TokenFile)
		if err != nil {
			return access{}, fmt.Errorf("read token: %w", err)
		}
		token := strings.TrimSpace(string(data))
		if token == "" || strings.ContainsAny(token, "\r\n") {
			return access{}, fmt.Errorf("read token: %s must hold one line", r.repo.TokenFile)
		}
		// The user is what GitHub wants for App tokens; for personal tokens, and at
		// Gitea and GitLab, any name does.
		return access{auth: &githttp.BasicAuth{Username: "x-access-token", Password: token}, secrets: []string{token}}, nil
	case "ssh":
		return r.openSSH()
	default:
		return access{}, r.checkFile()
	}
}

// checkFile finds the two common reasons of an unreadable answer beforehand:
// go-git runs git-upload-pack for file URLs, and hides that it is missing.
func (r remote) checkFile() error {
	if _, err := exec.LookPath("git"); err != nil {
		return errors.New("a file:// repository needs the program git (git-upload-pack) on this machine, and there is none in PATH")
	}
	info, err := os.Stat(r.path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", r.path)
	}
	return nil
}

// sshKey is go-git's way to be given a ready client configuration.
type sshKey struct{ config *ssh.ClientConfig }

func (sshKey) Name() string   { return gitssh.PublicKeysName }
func (sshKey) String() string { return gitssh.PublicKeysName }

func (k sshKey) ClientConfig() (*ssh.ClientConfig, error) { return k.config, nil }

// openSSH demands a key and a known_hosts file: no agent, no default keys, and a
// host whose key is not in the file is refused. The algorithms asked for are
// those of the known keys, else the server may show another of its keys, which
// would look like an attack.
func (r remote) openSSH() (access, error) {
	if r.repo.KeyFile == "" || r.repo.KnownHosts == "" {
		return access{}, errors.New("an ssh repository needs source.key_file and source.known_hosts")
	}
	pem, err := readFile(r.repo.KeyFile)
	if err != nil {
		return access{}, fmt.Errorf("read ssh key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(pem)
	if _, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok {
		return access{}, fmt.Errorf("read ssh key: %s has a passphrase, which is not supported: use a deploy key without one", r.repo.KeyFile)
	}
	if err != nil {
		return access{}, fmt.Errorf("read ssh key: %s is not a private key", r.repo.KeyFile) // no detail: it might quote the key
	}
	if _, err := readFile(r.repo.KnownHosts); err != nil {
		return access{}, fmt.Errorf("read known_hosts: %w", err)
	}
	db, err := gitssh.NewKnownHostsDb(r.repo.KnownHosts)
	if err != nil {
		return access{}, fmt.Errorf("read known_hosts: %w", err)
	}
	algorithms := db.HostKeyAlgorithms(r.host)
	if len(algorithms) == 0 {
		return access{}, fmt.Errorf("%s has no key of %s: add the output of ssh-keyscan after checking it", r.repo.KnownHosts, r.host)
	}
	return access{auth: sshKey{&ssh.ClientConfig{
		User: r.user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: db.HostKeyCallback(), HostKeyAlgorithms: algorithms, Timeout: dialTimeout,
	}}, secrets: []string{string(pem)}}, nil
}

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s is not a small regular file", name)
	}
	return os.ReadFile(name)
}

// maskedError is an error of go-git without secrets in its text. It answers
// errors.Is for what is inside but does not hand it out, since the inner text
// is not masked.
type maskedError struct {
	text string
	err  error
}

func (e *maskedError) Error() string        { return e.text }
func (e *maskedError) Is(target error) bool { return errors.Is(e.err, target) }

func (a access) redact(err error) error {
	return &maskedError{text: printable(redact.String(err.Error(), a.secrets...), 500), err: err}
}

// explain adds what a person can do about the common errors.
func (r remote) explain(err error) error {
	hint := ""
	var noMatch git.NoMatchingRefSpecError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed),
		errors.Is(err, transport.ErrRepositoryNotFound) && r.scheme == "https":
		hint = "check the URL and source.token_file: the server refuses or hides the repository"
	case errors.Is(err, transport.ErrEmptyRemoteRepository):
		hint = "push a commit first"
	case errors.Is(err, noMatch):
		hint = "there is no branch " + r.branch
	case r.scheme == "ssh" && strings.Contains(err.Error(), "knownhosts: key mismatch"):
		hint = "the server's host key is not the one in source.known_hosts"
	case r.scheme == "ssh" && strings.Contains(err.Error(), "unable to authenticate"):
		hint = "the server does not accept source.key_file"
	case r.scheme == "file" && strings.Contains(err.Error(), "dubious ownership"):
		hint = "it belongs to another user; to trust it: git config --system --add safe.directory " + r.path
	case r.scheme == "file" && errors.Is(err, io.ErrUnexpectedEOF):
		hint = "git-upload-pack refused it; try: git ls-remote " + r.url
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, hint)
}

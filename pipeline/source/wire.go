package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/format/index"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	gitssh "github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// session is a git-upload-pack at the other end.
type session interface {
	AdvertisedReferencesContext(ctx context.Context) (*packp.AdvRefs, error)
	UploadPack(ctx context.Context, r *packp.UploadPackRequest) (*packp.UploadPackResponse, error)
	Close() error
}

// maxPack bounds what a server may send, in bytes.
const maxPack = 4 << 30

// connect opens a session by the URL's scheme. All connections go through the guard.
func (c *checkout) connect(ctx context.Context) (session, error) {
	ep, err := transport.NewEndpoint(c.source.URL)
	if err != nil {
		return nil, errors.New("the URL cannot be parsed") // the error quotes it
	}
	if strings.HasPrefix(ep.Host, "-") || strings.HasPrefix(ep.User, "-") {
		return nil, errors.New("the URL has a host or user that looks like an option")
	}
	switch ep.Protocol {
	case "http", "https":
		client := &http.Client{Transport: guardOf(c.source.Reach).Transport()}
		var auth transport.AuthMethod
		if ep.User != "" {
			auth = &githttp.BasicAuth{Username: ep.User, Password: ep.Password}
		}
		return githttp.NewClient(client).NewUploadPackSession(ep, auth)
	case "git":
		return c.connectGit(ctx, ep)
	case "ssh":
		return c.connectSSH(ctx, ep)
	}
	return nil, fmt.Errorf("the scheme %.20q is not allowed; allowed: https, http, ssh, git", ep.Protocol)
}

// connectGit speaks git's own protocol (git-daemon(1)).
func (c *checkout) connectGit(ctx context.Context, ep *transport.Endpoint) (session, error) {
	port := ep.Port
	if port == 0 {
		port = 9418
	}
	conn, err := guardOf(c.source.Reach).Dialer().DialContext(ctx, "tcp", net.JoinHostPort(ep.Host, fmt.Sprint(port)))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // ends what is being read
	s := &stream{r: conn, w: conn, close: func() error { stop(); return conn.Close() }}
	hello := packp.GitProtoRequest{RequestCommand: "git-upload-pack", Pathname: ep.Path, Host: ep.Host}
	if err := hello.Encode(conn); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// connectSSH runs git-upload-pack by ssh, with the keys of an agent and known
// hosts only.
func (c *checkout) connectSSH(ctx context.Context, ep *transport.Endpoint) (session, error) {
	if c.AgentSocket == "" || c.KnownHosts == "" {
		return nil, errors.New("an ssh repository needs an ssh agent (SSH_AUTH_SOCK) and a file of known hosts")
	}
	db, err := gitssh.NewKnownHostsDb(c.KnownHosts)
	if err != nil {
		return nil, fmt.Errorf("read known_hosts: %w", err)
	}
	port := ep.Port
	if port == 0 {
		port = 22
	}
	addr := net.JoinHostPort(ep.Host, fmt.Sprint(port))
	keys, err := (&net.Dialer{}).DialContext(ctx, "unix", c.AgentSocket)
	if err != nil {
		return nil, fmt.Errorf("ssh agent: %w", err)
	}
	conn, err := guardOf(c.source.Reach).Dialer().DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, errors.Join(err, keys.Close())
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	s := &stream{close: func() error { stop(); return errors.Join(conn.Close(), keys.Close()) }}
	user := ep.User
	if user == "" {
		user = gitssh.DefaultUsername
	}
	err = s.start(conn, addr, ep.Path, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeysCallback(agent.NewClient(keys).Signers)},
		HostKeyCallback: db.HostKeyCallback(), HostKeyAlgorithms: db.HostKeyAlgorithms(addr), Timeout: dialTimeout,
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// stream is a session over a pair of pipes.
type stream struct {
	r     io.Reader
	w     io.Writer
	close func() error
}

// start runs the other end over ssh.
func (s *stream) start(conn net.Conn, addr, repo string, cfg *ssh.ClientConfig) error {
	c, chans, requests, err := ssh.NewClientConn(conn, addr, cfg)
	if err != nil {
		return err
	}
	remote, err := ssh.NewClient(c, chans, requests).NewSession()
	if err != nil {
		return err
	}
	if s.w, err = remote.StdinPipe(); err != nil {
		return err
	}
	if s.r, err = remote.StdoutPipe(); err != nil {
		return err
	}
	return remote.Start("git-upload-pack '" + strings.ReplaceAll(repo, "'", `'\''`) + "'")
}

func (s *stream) Close() error { return s.close() }

func (s *stream) AdvertisedReferencesContext(context.Context) (*packp.AdvRefs, error) {
	adv := packp.NewAdvRefs()
	if err := adv.Decode(s.r); err != nil {
		return nil, err
	}
	return adv, nil
}

func (s *stream) UploadPack(_ context.Context, r *packp.UploadPackRequest) (*packp.UploadPackResponse, error) {
	err := errors.Join(r.UploadRequest.Encode(s.w), r.UploadHaves.Encode(s.w, true), pktline.NewEncoder(s.w).Encodef("done\n"))
	if err != nil {
		return nil, fmt.Errorf("ask for commit: %w", err)
	}
	resp := packp.NewUploadPackResponse(r)
	return resp, resp.Decode(io.NopCloser(s.r))
}

// fetch asks for one object and what it needs. Servers that give only what they
// advertise are asked for all of that, with its history.
func (c *checkout) fetch(ctx context.Context, s session, id plumbing.Hash) error {
	r := packp.NewUploadPackRequestFromCapabilities(c.adv.Capabilities)
	if c.adv.Capabilities.Supports(capability.NoProgress) {
		_ = r.Capabilities.Set(capability.NoProgress)
	}
	r.Wants = []plumbing.Hash{id}
	if shown := c.shown(); !shown[id] && !c.adv.Capabilities.Supports("allow-reachable-sha1-in-want") && !c.adv.Capabilities.Supports("allow-tip-sha1-in-want") {
		r.Wants = nil
		for h := range shown {
			r.Wants = append(r.Wants, h)
		}
	} else if c.adv.Capabilities.Supports(capability.Shallow) {
		r.Depth = packp.DepthCommits(1)
		if err := r.Capabilities.Set(capability.Shallow); err != nil {
			return err
		}
	}
	resp, err := s.UploadPack(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Close() // read to its end, or of no use
	if err := c.st.SetShallow(resp.Shallows); err != nil {
		return err
	}
	var in io.Reader = io.LimitReader(resp, maxPack)
	switch {
	case r.Capabilities.Supports(capability.Sideband64k):
		in = sideband.NewDemuxer(sideband.Sideband64k, in)
	case r.Capabilities.Supports(capability.Sideband):
		in = sideband.NewDemuxer(sideband.Sideband, in)
	}
	return packfile.UpdateObjectStorage(c.st, in)
}

// shown are the objects that the server advertises as branches and tags.
func (c *checkout) shown() map[plumbing.Hash]bool {
	all := map[plumbing.Hash]bool{}
	for _, h := range c.adv.References {
		all[h] = true
	}
	if c.adv.Head != nil {
		all[*c.adv.Head] = true
	}
	return all
}

// keep makes the fetched objects a repository that git can go on with: shallow,
// with the commit checked out.
func (c *checkout) keep(commit *object.Commit) error {
	cfg := config.NewConfig()
	where := c.source.URL
	if u, err := url.Parse(where); err == nil && u.User != nil && u.Scheme != "ssh" {
		u.User = nil // a password is not for the image
		where = u.String()
	}
	cfg.Remotes["origin"] = &config.RemoteConfig{Name: "origin", URLs: []string{where}, Fetch: []config.RefSpec{"+refs/heads/*:refs/remotes/origin/*"}}
	if err := c.st.SetConfig(cfg); err != nil {
		return err
	}
	if err := c.st.SetReference(plumbing.NewHashReference(plumbing.HEAD, commit.Hash)); err != nil {
		return err
	}
	tree, err := commit.Tree()
	if err != nil {
		return err
	}
	idx := &index.Index{Version: 2}
	walker := object.NewTreeWalker(tree, true, nil)
	defer walker.Close()
	for {
		name, entry, err := walker.Next()
		if err == io.EOF {
			return c.st.SetIndex(idx)
		}
		if err != nil {
			return err
		}
		if entry.Mode != filemode.Dir {
			idx.Entries = append(idx.Entries, &index.Entry{Name: name, Hash: entry.Hash, Mode: entry.Mode})
		}
	}
}

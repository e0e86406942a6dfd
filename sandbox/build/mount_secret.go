package build

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"naru/internal/redact"
)

// maxSecret bounds one secret in bytes, as in BuildKit.
const maxSecret = 500 << 10

func (m *runMount) secretID() string {
	switch {
	case m.Source != "":
		return m.Source
	case m.CacheID != "":
		return m.CacheID
	}
	return path.Base(m.Target)
}

// secretKey adds which secret it is and whether there is one. Its value is in no key:
// a build with a renewed password is the same build.
func (r *stageRun) secretKey(m *runMount, k *keyHash) error {
	value, ok := r.o.Secrets[m.secretID()]
	if m.have = ok; !ok && m.Required {
		return m.errorf("required: the build was given no secret %q (--secret id=%s,src=FILE or env=NAME)", m.secretID(), m.secretID())
	}
	if len(value) > maxSecret {
		return m.errorf("secret %q has %d bytes; at most %d are possible", m.secretID(), len(value), maxSecret)
	}
	if m.Env != nil && slices.Contains(value, 0) {
		return m.errorf("secret %q has a NUL byte, which no environment variable can hold", m.secretID())
	}
	env := ""
	if m.Env != nil {
		env = "=" + *m.Env
	}
	k.field("secret", m.secretID(), env, strconv.FormatBool(ok))
	return nil
}

// openSecret gives the step a secret, if there is one.
func (r *stageRun) openSecret(m *runMount, o *openMounts) {
	if !m.have {
		return
	}
	value := r.o.Secrets[m.secretID()]
	if m.Env != nil {
		o.secrets = append(o.secrets, *m.Env+"="+string(value))
	}
	if m.target != "" {
		mode, uid, gid := m.owned(0o400)
		o.add(StepMount{Target: m.target, ReadOnly: true, File: &StepFile{Data: value, Mode: mode, UID: uid, GID: gid}})
	}
}

// masked returns a writer that covers the values of the build's secrets, whichever
// step prints them and however the output is cut, and its end.
func (b *build) masked(w io.Writer) (io.Writer, func() error) {
	if len(b.o.Secrets) == 0 {
		return w, func() error { return nil }
	}
	var values []string
	for _, v := range b.o.Secrets {
		if len(strings.TrimSpace(string(v))) >= minSecret {
			values = append(values, string(v))
		}
	}
	m := redact.NewWriter(w, values...)
	return m, m.Close
}

// minSecret is how long a value must be to be covered: "1" is in every output.
const minSecret = 4

func (m *runMount) agentID() string {
	if m.CacheID == "" {
		return "default"
	}
	return m.CacheID
}

func (r *stageRun) sshKey(m *runMount, k *keyHash) error {
	_, ok := r.o.SSH[m.agentID()]
	if m.have = ok; !ok && m.Required {
		return m.errorf("required: the build was given no agent %q (--ssh %s=SOCKET or KEY)", m.agentID(), m.agentID())
	}
	k.field("ssh", m.agentID(), strconv.FormatBool(ok))
	return nil
}

// openAgent lets the step talk to an agent of the caller's. The step can list keys
// and sign with them, and change nothing.
func (r *stageRun) openAgent(m *runMount, o *openMounts) error {
	if !m.have {
		return nil
	}
	open, err := openKeys(m.agentID(), r.o.SSH[m.agentID()])
	if err != nil {
		return err
	}
	mode, uid, gid := m.owned(0o600)
	serve := func(conn net.Conn) {
		defer conn.Close()
		keys, done, err := open()
		if err != nil {
			return // the step sees the connection end, as with an agent that has died
		}
		defer done()
		_ = agent.ServeAgent(readOnlyAgent{keys}, conn) // it ends with the connection
	}
	o.add(StepMount{Target: m.target, Socket: &StepSocket{Serve: serve, Mode: mode, UID: uid, GID: gid}})
	if len(o.env) == 0 {
		o.env = []string{"SSH_AUTH_SOCK=" + m.target}
	}
	return nil
}

// openKeys returns what gives the agent of one connection: the socket of another, or
// private keys from files, which stay in this process.
func openKeys(id string, paths []string) (func() (agent.ExtendedAgent, func(), error), error) {
	if len(paths) == 0 {
		sock := os.Getenv("SSH_AUTH_SOCK")
		if sock == "" {
			return nil, fmt.Errorf("--ssh %s: SSH_AUTH_SOCK is not set, and no socket or key was given", id)
		}
		paths = []string{sock}
	}
	if info, err := os.Stat(paths[0]); err != nil {
		return nil, fmt.Errorf("--ssh %s: %w", id, err)
	} else if len(paths) == 1 && info.Mode()&os.ModeSocket != 0 {
		return func() (agent.ExtendedAgent, func(), error) {
			conn, err := net.Dial("unix", paths[0])
			if err != nil {
				return nil, nil, err
			}
			return agent.NewClient(conn), func() { _ = conn.Close() }, nil
		}, nil
	}
	ring := agent.NewKeyring()
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("--ssh %s: %w", id, err)
		}
		key, err := ssh.ParseRawPrivateKey(data)
		if locked := new(ssh.PassphraseMissingError); errors.As(err, &locked) {
			err = errors.New("the key has a passphrase: add it to an agent and give its socket")
		}
		if err == nil {
			err = ring.Add(agent.AddedKey{PrivateKey: key})
		}
		if err != nil {
			return nil, fmt.Errorf("--ssh %s: %s: %w", id, p, err)
		}
	}
	keys, ok := ring.(agent.ExtendedAgent)
	if !ok {
		return nil, errors.New("internal error: a keyring is no agent")
	}
	return func() (agent.ExtendedAgent, func(), error) { return keys, func() {}, nil }, nil
}

// errReadOnly is what a step gets that wants to change an agent.
var errReadOnly = errors.New("a build step may only list keys and sign")

// readOnlyAgent refuses whatever changes an agent: a step must not take keys away
// from its owner, nor lock it.
type readOnlyAgent struct{ agent.ExtendedAgent }

func (readOnlyAgent) Add(agent.AddedKey) error   { return errReadOnly }
func (readOnlyAgent) Remove(ssh.PublicKey) error { return errReadOnly }
func (readOnlyAgent) RemoveAll() error           { return errReadOnly }
func (readOnlyAgent) Lock([]byte) error          { return errReadOnly }
func (readOnlyAgent) Unlock([]byte) error        { return errReadOnly }

// Extension lets no extension through: what it does is not known here.
func (readOnlyAgent) Extension(string, []byte) ([]byte, error) {
	return nil, agent.ErrExtensionUnsupported
}

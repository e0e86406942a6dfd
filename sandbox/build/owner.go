package build

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
)

// lookup resolves --chown's "user[:group]" by the accounts of the tree, as
// BuildKit does: a name alone brings its group along, a number alone is its own
// group. Unlike in BuildKit, which takes root instead, an unknown name is an
// error.
func lookup(tree *root, who string) (owner, error) {
	name, group, _ := strings.Cut(who, ":")
	o, err := lookupUser(tree, name)
	if err == nil && group != "" {
		o.gid, err = lookupGroup(tree, group)
	}
	if err != nil {
		return owner{}, err
	}
	if o.uid > maxID || o.gid > maxID {
		return owner{}, fmt.Errorf("owner %d:%d is outside 0..%d", o.uid, o.gid, maxID)
	}
	return o, nil
}

// number reads an id. The name root is one everywhere, with files or without.
func number(s string) (int, bool) {
	if s == "root" {
		return 0, true
	}
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}

// byNumber tells whether an owner can be known without a file of accounts.
func byNumber(who string) bool {
	name, group, _ := strings.Cut(who, ":")
	_, okUser := number(name)
	_, okGroup := number(group)
	return okUser && (okGroup || group == "")
}

func lookupUser(tree *root, name string) (owner, error) {
	if n, ok := number(name); ok {
		return owner{n, n}, nil
	}
	data, err := accounts(tree, "etc/passwd")
	if err != nil {
		return owner{}, err
	}
	found, err := user.ParsePasswdFilter(bytes.NewReader(data), func(u user.User) bool { return u.Name == name })
	if err != nil {
		return owner{}, fmt.Errorf("read /etc/passwd: %w", err)
	}
	if len(found) == 0 || name == "" {
		return owner{}, fmt.Errorf("unknown user %q: /etc/passwd of the image has none", name)
	}
	return owner{found[0].Uid, found[0].Gid}, nil
}

func lookupGroup(tree *root, name string) (int, error) {
	if n, ok := number(name); ok {
		return n, nil
	}
	data, err := accounts(tree, "etc/group")
	if err != nil {
		return 0, err
	}
	found, err := user.ParseGroupFilter(bytes.NewReader(data), func(g user.Group) bool { return g.Name == name })
	if err != nil {
		return 0, fmt.Errorf("read /etc/group: %w", err)
	}
	if len(found) == 0 {
		return 0, fmt.Errorf("unknown group %q: /etc/group of the image has none", name)
	}
	return found[0].Gid, nil
}

// accounts reads a file that an image need not have.
func accounts(tree *root, file string) ([]byte, error) {
	data, err := tree.readFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

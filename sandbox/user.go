package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// account is who a process runs as.
type account struct {
	specs.User
	Home string
}

// lookup resolves "name|uid[:group|gid]" by the passwd and group files of the
// view, with all supplementary groups of that user. Names that no file knows
// and numbers that do not fit a user namespace are errors: a number that
// wraps around to 0 is how a plain user becomes root (CVE-2024-40635).
func (v *rootView) lookup(who string) (account, error) {
	passwd, err := v.readAccounts("etc/passwd")
	if err != nil {
		return account{}, err
	}
	group, err := v.readAccounts("etc/group")
	if err != nil {
		return account{}, err
	}
	found, err := user.GetExecUser(who, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return account{}, fmt.Errorf("user %q: %w", who, err)
	}
	for _, n := range append([]int{found.Uid, found.Gid}, found.Sgids...) {
		if n < 0 || n >= idSize {
			return account{}, fmt.Errorf("user %q: id %d is outside 0..%d", who, n, idSize-1)
		}
	}
	a := account{User: specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}, Home: found.Home}
	if a.Home == "" {
		a.Home = "/"
	}
	for _, n := range found.Sgids {
		if g := uint32(n); !slices.Contains(a.AdditionalGids, g) {
			a.AdditionalGids = append(a.AdditionalGids, g)
		}
	}
	return a, nil
}

// readAccounts reads a file that an image without users does not have.
func (v *rootView) readAccounts(path string) ([]byte, error) {
	data, err := v.readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// addGroups gives a process more groups, by name or number.
func (v *rootView) addGroups(u *specs.User, groups []string) error {
	if len(groups) == 0 {
		return nil
	}
	file, err := v.readAccounts("etc/group")
	if err != nil {
		return err
	}
	ids, err := user.GetAdditionalGroups(groups, bytes.NewReader(file))
	if err != nil {
		return fmt.Errorf("group to add: %w", err)
	}
	for _, n := range ids {
		if n < 0 || n >= idSize {
			return fmt.Errorf("group to add: id %d is outside 0..%d", n, idSize-1)
		}
		if g := uint32(n); !slices.Contains(u.AdditionalGids, g) {
			u.AdditionalGids = append(u.AdditionalGids, g)
		}
	}
	return nil
}

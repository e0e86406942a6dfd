package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Token is what is known of a token; the token itself is not stored.
type Token struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Used    time.Time `json:"used,omitzero"` // at most an hour behind
}

// ErrToken says that a token is not valid: unknown, revoked or mistyped.
var ErrToken = errors.New("token is not valid")

// tokenPrefix lets secret scanners find tokens that leaked.
const tokenPrefix = "naru"

// CreateToken makes a token, "naru_<id>_<256 random bits>", and returns it; it
// can not be read again. The store keeps its SHA-256: a random key that long
// needs no slow hash.
func (s *Store) CreateToken(ctx context.Context, name string) (plain string, t Token, err error) {
	var random [6 + 32]byte
	rand.Read(random[:]) // never fails (crypto/rand, Go 1.24)
	t = Token{ID: hex.EncodeToString(random[:6]), Name: name, Created: unstamp(stamp(s.now()))}
	plain = tokenPrefix + "_" + t.ID + "_" + base64.RawURLEncoding.EncodeToString(random[6:])
	hash := sha256.Sum256([]byte(plain))
	err = s.update(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO tokens (id, name, hash, created) VALUES (?, ?, ?, ?)", t.ID, t.Name, hash[:], stamp(t.Created))
		return err
	})
	if err != nil {
		return "", Token{}, fmt.Errorf("create token: %w", err)
	}
	return plain, t, nil
}

// CheckToken returns the token that plain is, or ErrToken. The id finds the
// record; the comparison takes the same time for every wrong token.
func (s *Store) CheckToken(ctx context.Context, plain string) (Token, error) {
	parts := strings.SplitN(plain, "_", 3)
	if len(parts) != 3 || parts[0] != tokenPrefix || len(plain) > 200 {
		return Token{}, ErrToken
	}
	t := Token{ID: parts[1]}
	var want []byte
	var created, used int64
	err := s.read.QueryRowContext(ctx, "SELECT name, hash, created, used FROM tokens WHERE id = ?", t.ID).Scan(&t.Name, &want, &created, &used)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Token{}, fmt.Errorf("check token: %w", err)
	}
	hash := sha256.Sum256([]byte(plain))
	if subtle.ConstantTimeCompare(want, hash[:]) != 1 {
		return Token{}, ErrToken
	}
	t.Created, t.Used = unstamp(created), unstamp(used)
	if now := s.now(); now.Sub(t.Used) > time.Hour { // not a write for every request
		err := s.update(ctx, func(tx *sql.Tx) error {
			_, err := tx.Exec("UPDATE tokens SET used = ? WHERE id = ?", stamp(now), t.ID)
			return err
		})
		if err != nil {
			return Token{}, fmt.Errorf("check token: %w", err)
		}
	}
	return t, nil
}

// Tokens lists all tokens, oldest first.
func (s *Store) Tokens(ctx context.Context) (all []Token, err error) {
	rows, err := s.read.QueryContext(ctx, "SELECT id, name, created, used FROM tokens ORDER BY created, id")
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var t Token
		var created, used int64
		if err := rows.Scan(&t.ID, &t.Name, &created, &used); err != nil {
			return nil, fmt.Errorf("list tokens: %w", err)
		}
		t.Created, t.Used = unstamp(created), unstamp(used)
		all = append(all, t)
	}
	return all, rows.Err()
}

// RevokeToken removes a token by its id; ErrNotFound if there is none.
func (s *Store) RevokeToken(ctx context.Context, id string) error {
	err := s.update(ctx, func(tx *sql.Tx) error {
		r, err := tx.Exec("DELETE FROM tokens WHERE id = ?", id)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, ErrNotFound)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("revoke token %s: %w", id, err)
	}
	return nil
}

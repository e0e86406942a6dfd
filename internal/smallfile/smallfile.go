// Package smallfile reads files that a stranger may have made: only regular ones,
// and only as far as a bound.
package smallfile

import (
	"fmt"
	"io"
	"os"
)

// Read returns the content of an open file. It was opened without waiting
// (O_NONBLOCK), as it may turn out to be a pipe, which is an error, as is a file of more than
// limit bytes. The caller's error says which file it is.
func Read(f *os.File, limit int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", f.Name())
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", f.Name(), limit)
	}
	return data, nil
}

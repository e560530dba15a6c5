package audit

import (
	"errors"
	"fmt"
	"io/fs"
)

// MaxTail bounds what Tail returns.
const MaxTail = 10_000

// Tail returns the last n records of the log at path, oldest first, rotated files included. It
// does not verify the chain; a line that is no record is an error.
func Tail(path string, n int) ([]Record, error) {
	if n <= 0 {
		return nil, nil
	}
	n = min(n, MaxTail)
	rotated, err := rotatedFiles(path)
	if err != nil {
		return nil, err
	}
	files := append(rotated, rotatedFile{path: path})
	var out []Record
	for i := len(files) - 1; i >= 0 && len(out) < n; i-- {
		var recs []Record
		no := 0
		err := lines(files[i].path, func(line []byte, whole bool) error {
			no++
			if !whole {
				return nil // being written
			}
			r, err := parseLine(line)
			if err != nil {
				return fmt.Errorf("audit: %s, line %d: %w; see: wardgate audit verify", files[i].path, no, err)
			}
			recs = append(recs, r)
			if len(recs) >= 2*n {
				recs = append(recs[:0], recs[len(recs)-n:]...)
			}
			return nil
		})
		if errors.Is(err, fs.ErrNotExist) && i == len(files)-1 && len(rotated) > 0 {
			continue // between the two steps of a rotation
		}
		if err != nil {
			return nil, err
		}
		out = append(recs, out...)
	}
	return out[max(0, len(out)-n):], nil
}

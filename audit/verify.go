package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
)

// Report is what verification found.
type Report struct {
	Files       []string `json:"files"`
	Records     uint64   `json:"records"`
	First       uint64   `json:"first"` // sequence numbers
	Last        uint64   `json:"last"`
	LastHash    string   `json:"last_hash"`    // worth noting elsewhere: it vouches for everything before it
	Break       *Break   `json:"break"`        // nil: the chain is whole
	Unfinished  bool     `json:"unfinished"`   // the last line is half written: in use, or a power loss
	MissingHead bool     `json:"missing_head"` // older files are gone (rotation with Keep, or deleted)
}

// Kinds of breaks.
const (
	BreakChanged = "changed"  // a record's content does not fit its hash
	BreakForeign = "foreign"  // a line that is no record
	BreakMissing = "missing"  // records were taken out
	BreakCut     = "cut-off"  // records were taken off the end
	BreakOrder   = "order"    // records were put in, repeated or exchanged
	BreakChain   = "chain"    // a record was replaced by another with a hash of its own
	BreakNumber  = "rotation" // a rotated file does not end where its name says
)

// Break is the first place where the chain is broken.
type Break struct {
	File string `json:"file"`
	Line int    `json:"line"` // from 1
	Seq  uint64 `json:"seq"`  // of the last good record before it
	Kind string `json:"kind"`
	Text string `json:"text"`
}

var errStop = errors.New("stop")

// VerifyFile verifies the log at path with all its rotated files, and reports the first break. An
// error means that a file could not be read. The log may be in use meanwhile.
func VerifyFile(path string) (Report, error) {
	var rep Report
	for range 10 {
		var err error
		if rep, err = verifyOnce(path); !errors.Is(err, fs.ErrNotExist) {
			return rep, err
		}
		// Rotation removed the oldest file (Options.Keep) between the listing and our opening it.
	}
	return verifyOnce(path)
}

// logFiles returns the files of the log in the order of their records. The last may be written and
// rotated meanwhile: it is held open, and what was rotated after it is left out, so that the list is
// the log as it stood at one moment. current is nil where there is no file of that name.
func logFiles(path string) (files []rotatedFile, current *os.File, err error) {
	current, err = os.Open(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	rotated, rerr := rotatedFiles(path)
	if rerr != nil || current == nil {
		if rerr == nil && len(rotated) == 0 {
			rerr = err
		}
		return rotated, nil, rerr
	}
	held, err := current.Stat()
	if err != nil {
		return rotated, current, err
	}
	if named, err := os.Stat(path); err != nil || !os.SameFile(held, named) {
		// Rotated meanwhile, so it has records: what ends with or after its first came later.
		err := readLines(io.NewSectionReader(current, 0, math.MaxInt64), func(line []byte, _ bool) error {
			if r, err := parseLine(line); err == nil {
				rotated = slices.DeleteFunc(rotated, func(f rotatedFile) bool { return f.last >= r.Seq })
			}
			return errStop
		})
		if !errors.Is(err, errStop) {
			return rotated, current, err
		}
	}
	return append(rotated, rotatedFile{path: path}), current, nil
}

func verifyOnce(path string) (Report, error) {
	var rep Report
	// Read first: records that are added meanwhile only make the log longer than the head says.
	top, hasHead := readHead(path)
	headHash := ""
	files, current, err := logFiles(path)
	if current != nil {
		defer current.Close()
	}
	if err != nil {
		return rep, err
	}
	prev, seq, begun := genesis, uint64(0), false
	for _, file := range files {
		rep.Files = append(rep.Files, file.path)
		n := 0
		read := func(f func([]byte, bool) error) error { return lines(file.path, f) }
		if file.last == 0 && current != nil {
			read = func(f func([]byte, bool) error) error { return readLines(current, f) }
		}
		err := read(func(line []byte, whole bool) error {
			n++
			brk := func(kind, format string, args ...any) error {
				rep.Break = &Break{File: file.path, Line: n, Seq: seq, Kind: kind, Text: fmt.Sprintf(format, args...)}
				return errStop
			}
			if !whole {
				rep.Unfinished = true
				return errStop
			}
			r, err := parseLine(line)
			switch {
			case errors.Is(err, errHash):
				return brk(BreakChanged, "record %d was changed: its hash does not fit its content", r.Seq)
			case err != nil:
				return brk(BreakForeign, "this line is no record: %v", err)
			}
			if !begun {
				begun = true
				rep.First = r.Seq
				if r.Seq > 1 {
					// the head of the chain was rotated away: it begins with the first there is
					rep.MissingHead = true
					prev, seq = r.Prev, r.Seq-1
				}
			}
			switch {
			case r.Seq > seq+1:
				if file, line, ok := findRecord(files, seq+1); ok {
					return brk(BreakOrder, "record %d comes after record %d; record %d is in line %d of %s", r.Seq, seq, seq+1, line, filepath.Base(file))
				}
				return brk(BreakMissing, "records %d to %d are missing", seq+1, r.Seq-1)
			case r.Seq != seq+1:
				return brk(BreakOrder, "record %d comes after record %d", r.Seq, seq)
			case r.Prev != prev:
				return brk(BreakChain, "record %d does not continue record %d: one of the two was replaced", r.Seq, seq)
			}
			prev, seq = r.Hash, r.Seq
			rep.Records++
			if hasHead && seq == top.seq {
				headHash = prev
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStop) {
			return rep, err
		}
		if rep.Break == nil && file.last != 0 && seq != file.last {
			rep.Break = &Break{File: file.path, Line: n, Seq: seq, Kind: BreakNumber, Text: fmt.Sprintf("the file ends with record %d; its name says %d", seq, file.last)}
		}
		if rep.Break != nil {
			break
		}
	}
	rep.Last, rep.LastHash = seq, prev
	if rep.Break == nil && hasHead {
		rep.Break = compareHead(path, rep, top, headHash)
	}
	return rep, nil
}

// compareHead compares a whole chain with the head file; found is the hash of the head's record.
func compareHead(path string, rep Report, top head, found string) *Break {
	switch {
	case top.seq > rep.Last:
		return &Break{File: path, Seq: rep.Last, Kind: BreakCut, Text: fmt.Sprintf("records %d to %d are missing at the end", rep.Last+1, top.seq)}
	case top.seq >= rep.First && top.seq > 0 && found != top.hash:
		return &Break{File: path, Seq: rep.Last, Kind: BreakChain, Text: fmt.Sprintf("record %d is not the one that was written: the chain was made anew", top.seq)}
	}
	return nil
}

// findRecord looks for a record that is not in its place.
func findRecord(files []rotatedFile, seq uint64) (file string, line int, ok bool) {
	for _, f := range files {
		n := 0
		_ = lines(f.path, func(b []byte, _ bool) error { // what cannot be read is not found
			n++
			if r, err := parseLine(b); err == nil && r.Seq == seq {
				file, line, ok = f.path, n, true
				return errStop
			}
			return nil
		})
		if ok {
			break
		}
	}
	return file, line, ok
}

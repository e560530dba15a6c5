package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Sync says when a record is forced to the disk.
type Sync uint8

// When records are forced to the disk.
const (
	SyncAlways   Sync = iota // before Append returns (default)
	SyncInterval             // at the latest Options.SyncEvery after Append
	SyncNever                // when the kernel likes
)

const (
	defaultMaxSize   = 64 << 20
	defaultSyncEvery = time.Second
	minMaxSize       = 4 * MaxLine
)

// Options of a Log.
type Options struct {
	Sync      Sync
	SyncEvery time.Duration    // for SyncInterval; 0: 1 s
	MaxSize   int64            // octets after which the file is rotated; 0: 64 MiB, at least 256 KiB
	Keep      int              // rotated files kept; 0: all
	Now       func() time.Time // for the log's own records; required
}

// Log is an open audit record; safe for concurrent use.
type Log struct {
	path string
	opt  Options

	mu     sync.Mutex // guards what follows
	f      *os.File
	head   *os.File // head.go
	size   int64
	seq    uint64
	prev   string
	dirty  bool
	closed bool
	failed error // a write that could not be undone: nothing may follow it

	stop chan struct{}
	done chan struct{}
}

// Errors of the API.
var (
	ErrClosed = errors.New("audit: log is closed")
	// ErrBroken: Open found that the end of the file does not fit its beginning. Nothing is
	// appended to a record that somebody has changed.
	ErrBroken = errors.New("audit: the record was changed")
	ErrLocked = errors.New("audit: the record is in use by another process")
)

// Open opens the log at path, or creates it with mode 0600, and goes on with its chain. A
// half-written last line, as a power loss leaves it, is cut off and reported in a record of its
// own (log-damaged). Records that are gone from the end, which the head file shows (docs/audit.md),
// are reported in the same way, and their sequence numbers are not used again, so that the gap
// stays. A last record that does not verify is ErrBroken. One process may have the log open at a
// time.
func Open(path string, opt Options) (*Log, error) {
	if opt.Now == nil {
		return nil, errors.New("audit: Options.Now is required")
	}
	if opt.MaxSize == 0 {
		opt.MaxSize = defaultMaxSize
	}
	opt.MaxSize = max(opt.MaxSize, minMaxSize)
	if opt.SyncEvery <= 0 {
		opt.SyncEvery = defaultSyncEvery
	}
	l := &Log{path: path, opt: opt, prev: genesis, stop: make(chan struct{}), done: make(chan struct{})}
	f, err := openLocked(path)
	if err != nil {
		return nil, err
	}
	l.f = f
	reports, err := l.resume()
	if err == nil {
		l.head, err = openHead(path)
	}
	for i := 0; err == nil && i < len(reports); i++ {
		err = l.Append(Record{Time: opt.Now(), Event: EventLogDamaged, What: filepath.Base(path), Result: ResultFailed, Detail: reports[i]})
	}
	if err == nil && len(reports) > 0 {
		// The reports are on the disk: what they tell of need not be kept any longer.
		if err = l.sync(); err == nil {
			err = dropFragment(path)
		}
	}
	if err != nil {
		l.head.Close()
		f.Close()
		return nil, err
	}
	if opt.Sync == SyncInterval {
		go l.syncLoop()
	} else {
		close(l.done)
	}
	return l, nil
}

// resume finds the end of the chain. It returns what has to be reported: the details of records
// of EventLogDamaged.
func (l *Log) resume() (reports []map[string]string, err error) {
	st, err := l.f.Stat()
	if err != nil {
		return nil, err
	}
	l.size = st.Size()
	line, start, err := lastLine(l.f, l.size)
	if err != nil {
		return nil, err
	}
	if len(line) > 0 && line[len(line)-1] != '\n' {
		// Kept beside the log until it is reported, so that a second power loss drops nothing.
		if err := keepFragment(l.path, line); err != nil {
			return nil, err
		}
		if err := l.f.Truncate(start); err != nil {
			return nil, err
		}
		l.size = start
		if line, _, err = lastLine(l.f, l.size); err != nil {
			return nil, err
		}
	}
	fragment, err := readFragment(l.path)
	if err != nil {
		return nil, err
	}
	if len(fragment) > 0 {
		reports = append(reports, map[string]string{
			"cut_off": string(fragment), "octets": strconv.Itoa(len(fragment)), "text": "the last line was not written to its end, as after a power loss",
		})
	}
	if len(line) == 0 {
		// An empty file: a new log, or a rotation that was cut short between two files.
		rotated, err := rotatedFiles(l.path)
		if err != nil {
			return nil, err
		}
		if len(rotated) > 0 {
			last := rotated[len(rotated)-1].path
			f, err := os.Open(last)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				return nil, err
			}
			if line, _, err = lastLine(f, st.Size()); err != nil {
				return nil, err
			}
		}
	}
	if len(line) > 0 {
		r, err := parseLine(trimNewline(line))
		if err != nil {
			return nil, fmt.Errorf("%w: last line of %s: %w; keep the file as evidence, find out who changed it, then move it away with %s and restart",
				ErrBroken, l.path, err, filepath.Base(headPath(l.path)))
		}
		l.seq, l.prev = r.Seq, r.Hash
	}
	if h, ok := readHead(l.path); ok && h.seq > l.seq {
		// The gap stays in the chain for good: VerifyFile reports it.
		reports = append(reports, map[string]string{
			"last_found": strconv.FormatUint(l.seq, 10), "last_written": strconv.FormatUint(h.seq, 10),
			"text": "records that had been written are gone from the end of the log",
		})
		l.seq, l.prev = h.seq, h.hash
	}
	_, err = l.f.Seek(l.size, io.SeekStart)
	return reports, err
}

// Append writes one record: it sets Seq, Prev and Hash, and Time where it is zero. When it
// returns nil the record is in the file (on the disk, with SyncAlways).
func (l *Log) Append(r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if l.failed != nil {
		return l.failed
	}
	if l.size >= l.opt.MaxSize {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	return l.append(r)
}

func (l *Log) append(r Record) error {
	r.Seq, r.Prev = l.seq+1, l.prev
	if r.Time.IsZero() {
		r.Time = l.opt.Now()
	}
	r.Time = r.Time.UTC().Round(0) // no monotonic reading
	r.bound()
	line, err := r.seal()
	if err != nil {
		return err
	}
	if _, err := l.f.Write(append(line, '\n')); err != nil {
		// what was half written must not be continued
		if err2 := l.f.Truncate(l.size); err2 != nil {
			l.failed = fmt.Errorf("audit: a write failed half-way and could not be undone: %w", errors.Join(err, err2))
			return l.failed
		}
		_, err2 := l.f.Seek(l.size, io.SeekStart)
		return errors.Join(fmt.Errorf("audit: %w", err), err2)
	}
	l.size += int64(len(line)) + 1
	l.seq, l.prev, l.dirty = r.Seq, r.Hash, true
	if l.opt.Sync == SyncAlways {
		return l.sync()
	}
	return nil
}

func (l *Log) sync() error {
	if !l.dirty {
		return nil
	}
	if err := l.f.Sync(); err != nil {
		return fmt.Errorf("audit: force the record to the disk: %w", err)
	}
	l.dirty = false
	return writeHead(l.head, head{l.seq, l.prev})
}

func (l *Log) syncLoop() {
	defer close(l.done)
	t := time.NewTicker(l.opt.SyncEvery)
	defer t.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-t.C:
			l.mu.Lock()
			_ = l.sync() // dirty stays set: the next tick tries again, and Close reports
			l.mu.Unlock()
		}
	}
}

// rotate gives the file the name path.SEQ, SEQ being its last sequence number in 20 digits, and begins a new
// one whose first record continues the chain.
func (l *Log) rotate() error {
	if err := l.append(Record{Time: l.opt.Now(), Event: EventLogRotated, What: filepath.Base(l.path), Result: ResultInfo}); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	name := fmt.Sprintf("%s.%020d", l.path, l.seq)
	if err := os.Rename(l.path, name); err != nil {
		return fmt.Errorf("audit: rotate: %w", err)
	}
	f, err := openLocked(l.path)
	if err != nil {
		// go on in the old file rather than lose records
		return errors.Join(err, os.Rename(name, l.path))
	}
	l.f.Close()
	l.f, l.size = f, 0
	if err := syncDir(l.path); err != nil {
		return err
	}
	if err := l.append(Record{
		Time: l.opt.Now(), Event: EventLogContinued, What: filepath.Base(name), Result: ResultInfo,
	}); err != nil {
		return err
	}
	if l.opt.Keep <= 0 {
		return nil
	}
	old, err := rotatedFiles(l.path)
	if err != nil {
		return err
	}
	for len(old) > l.opt.Keep {
		if err := os.Remove(old[0].path); err != nil {
			return err
		}
		old = old[1:]
	}
	return nil
}

// Close forces everything to the disk and closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.stop)
	err := errors.Join(l.sync(), l.f.Close(), l.head.Close())
	l.mu.Unlock()
	<-l.done
	return err
}

// rotatedFile is a file that was rotated; last is the sequence number of its last record.
type rotatedFile struct {
	path string
	last uint64
}

// rotatedFiles lists the rotated files of the log at path, oldest first.
func rotatedFiles(path string) ([]rotatedFile, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []rotatedFile
	for _, e := range entries {
		n, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if !ok || len(n) != 20 {
			continue
		}
		seq, err := strconv.ParseUint(n, 10, 64)
		if err != nil {
			continue
		}
		out = append(out, rotatedFile{filepath.Join(filepath.Dir(path), e.Name()), seq})
	}
	slices.SortFunc(out, func(a, b rotatedFile) int {
		if a.last < b.last {
			return -1
		}
		return 1
	})
	return out, nil
}

// lastLine returns the last line of a file of the given size with its newline, and where it
// begins. It is empty for an empty file; without a newline at the end it is a half-written one.
func lastLine(f io.ReaderAt, size int64) (line []byte, start int64, err error) {
	n := min(size, 2*MaxLine)
	b := make([]byte, n)
	if _, err := f.ReadAt(b, size-n); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	end := len(b)
	search := b
	if end > 0 && b[end-1] == '\n' {
		search = b[:end-1]
	}
	i := strings.LastIndexByte(string(search), '\n') + 1
	return b[i:], size - n + int64(i), nil
}

func trimNewline(line []byte) []byte {
	if n := len(line); n > 0 && line[n-1] == '\n' {
		return line[:n-1]
	}
	return line
}

// lines calls f with every line of the file, without its newline; whole tells whether it had one.
func lines(path string, f func(line []byte, whole bool) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return readLines(file, f)
}

func readLines(file io.Reader, f func(line []byte, whole bool) error) error {
	r := bufio.NewReaderSize(file, MaxLine)
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case err == nil:
			if err := f(line[:len(line)-1], true); err != nil {
				return err
			}
		case errors.Is(err, bufio.ErrBufferFull):
			// longer than any record of ours: it does not verify; find where it ends
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = r.ReadSlice('\n')
			}
			if err := f(nil, true); err != nil {
				return err
			}
		case errors.Is(err, io.EOF):
			if len(line) > 0 {
				return f(line, false)
			}
			return nil
		default:
			return err
		}
	}
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

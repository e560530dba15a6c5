package centre

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxJournal bounds the journal's file, in octets.
const maxJournal = 4 << 20

// JournalFile keeps the journal's octets. Save replaces all of them or none, also when the power
// fails.
type JournalFile interface {
	Load() ([]byte, error) // nil when there is none
	Save(b []byte) error
}

// File is a JournalFile at a path.
type File string

// Load implements JournalFile.
func (f File) Load() ([]byte, error) {
	r, err := os.Open(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxJournal+1))
	if err == nil && len(b) > maxJournal {
		err = fmt.Errorf("%s: expected at most %d octets, got more", string(f), maxJournal)
	}
	return b, err
}

// Save implements JournalFile: written beside, synced, renamed, the folder synced. The temporary
// file has one name, so that a power failure leaves at most one, which the next Save overwrites.
func (f File) Save(b []byte) error {
	tmp := string(f) + ".new"
	w, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	if err = errors.Join(err, w.Chmod(0o600), w.Sync(), w.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, string(f)); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	d, err := os.Open(filepath.Dir(string(f)))
	if err != nil {
		return err
	}
	defer d.Close()
	_ = d.Sync() // not every file system can
	return nil
}

// journal is what must be remembered beside token and policy.
type journal struct {
	Format   int                 `json:"format"`
	Services map[string]*pending `json:"services,omitempty"`
	// ETag is that of the policy with Serial, which was accepted.
	ETag   string `json:"etag,omitempty"`
	Serial uint64 `json:"serial,omitempty"`
}

// pending is a service that something was begun for: what it has on the token is ours to clean up.
type pending struct {
	// NewKey: the key that waits is not to be used, because the centre refuses it.
	NewKey bool `json:"new_key,omitempty"`
	// Certificate was issued and may not be on the token yet; Chain is what lies between it and
	// its anchor. DER.
	Certificate []byte   `json:"certificate,omitempty"`
	Chain       [][]byte `json:"chain,omitempty"`
}

const journalFormat = 1

// readJournal never fails but for reading: octets that are no journal are as good as none, because
// the token tells the rest. lost says that this was so.
func readJournal(f JournalFile) (j *journal, lost error, err error) { //nolint:staticcheck // lost is an answer, not the failure of the call
	b, err := f.Load()
	if err != nil {
		return nil, nil, fail(JournalError, "a journal that can be read", err.Error(), "look at the state directory's rights and disk", err)
	}
	j = &journal{}
	if b != nil {
		if lost = json.Unmarshal(b, j); lost == nil && j.Format != journalFormat {
			lost = fmt.Errorf("expected format %d, got %d", journalFormat, j.Format)
		}
		if lost != nil {
			j = &journal{}
		}
	}
	j.Format = journalFormat
	if j.Services == nil {
		j.Services = map[string]*pending{}
	}
	for name, p := range j.Services {
		if p == nil {
			j.Services[name] = &pending{}
		}
	}
	return j, lost, nil
}

func (j *journal) save(f JournalFile) error {
	b, err := json.Marshal(j)
	if err == nil {
		err = f.Save(append(b, '\n'))
	}
	if err != nil {
		return fail(JournalError, "a journal that can be written", err.Error(), "look at the state directory's rights and disk", err)
	}
	return nil
}

package ikeload

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"sync"
)

// chainFile is the certificates behind a responder's tickets (ike.ChainStore). They outlive it in a
// file, which is read when it starts and written when it ends.
type chainFile struct {
	name string

	mu   sync.Mutex
	list map[[32]byte][][]byte
}

func readChains(name string) (*chainFile, error) {
	c := &chainFile{name: name, list: map[[32]byte][][]byte{}}
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	var all []chainOf
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	for _, x := range all {
		c.list[x.Leaf] = x.Chain
	}
	return c, err
}

type chainOf struct {
	Leaf  [32]byte
	Chain [][]byte
}

func (c *chainFile) write() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []chainOf
	for k, v := range c.list {
		all = append(all, chainOf{k, v})
	}
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return os.WriteFile(c.name, text, 0o600)
}

// SaveChain implements ike.ChainStore.
func (c *chainFile) SaveChain(leaf [32]byte, chain [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.list[leaf] == nil {
		c.list[leaf] = chain
	}
}

// LoadChain implements ike.ChainStore.
func (c *chainFile) LoadChain(leaf [32]byte) [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.list[leaf]
}

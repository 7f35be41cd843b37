package blob

import "context"

// Renamer is what a Container can do besides when the account has a hierarchical namespace: there directories are objects
// of their own, which every file makes for the names that lead to it, and which stay when they are empty. It is found by
// AsRenamer.
//
// Such a container shows a directory as a zero-length blob with metadata hdi_isfolder=true (Properties, List without a
// delimiter), and a listing with a delimiter as a prefix. Upload with that metadata makes one. Delete of a directory fails
// with Unsupported.
//
// Methods may be called in parallel, and fail as those of Container do.
type Renamer interface {
	// Rename gives a file, or a directory with all that is below it, another name, in one step that nobody sees half-way
	// ("Path - Create", x-ms-rename-source). Content, properties, metadata and times stay; Properties tells the ETag.
	// A file replaces a file, a directory an empty directory: NotEmpty when it is not empty. What is of the other kind, or
	// there in spite of Condition.IfNoneMatch, fails with Exists; NotFound when there is no src, or no directory for dst.
	// A lease of dst is broken.
	Rename(ctx context.Context, dst, src string, o RenameOptions) error

	// DeleteDirectory deletes an empty directory ("Path - Delete"): NotEmpty when it is not.
	DeleteDirectory(ctx context.Context, name string) error
}

// RenameOptions go with Renamer.Rename.
type RenameOptions struct {
	// Source is the condition on the source, Condition the one on the destination.
	Source    Condition
	Condition Condition
}

// LateRenamer is a Container that finds out only when it matters whether it is a Renamer.
type LateRenamer interface {
	Container
	// Settle finds it out. After an error it can be called again; without one the answer stays what it is.
	Settle(ctx context.Context) error
	// Renamer returns the Renamer, or nil if it is none, or Settle has not found it out.
	Renamer() Renamer
}

// AsRenamer returns the Renamer that a container is.
func AsRenamer(c Container) (r Renamer, ok bool) {
	switch c := c.(type) {
	case Renamer:
		return c, true
	case LateRenamer:
		r = c.Renamer()
	}
	return r, r != nil
}

// SettleRenamer makes the answer of AsRenamer final.
func SettleRenamer(ctx context.Context, c Container) error {
	if l, ok := c.(LateRenamer); ok {
		return l.Settle(ctx)
	}
	return nil
}

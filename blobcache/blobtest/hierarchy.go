package blobtest

import (
	"context"
	"strings"

	"blobmount/blobcache/blob"
)

// A hierarchical namespace ("Azure Data Lake Storage hierarchical namespace"): directories are objects, which files make
// for the names that lead to them, and which stay when they are empty. Through the Blob service they are zero-length blobs
// with metadata hdi_isfolder=true, and in listings with a delimiter prefixes. They are deleted by "Path - Delete" only:
// "Delete Blob" answers OperationNotSupportedOnDirectory (github.com/Azure/azure-sdk-for-go/issues/20665).

const folderKey = "hdi_isfolder"

func (r *record) isDirectory() bool {
	return r != nil && r.content.size() == 0 && strings.EqualFold(r.metadata[folderKey], "true")
}

// checkPath checks that a blob can have this name: what leads to it are directories. The caller holds mu.
func (s *Store) checkPath(name string) error {
	if strings.HasSuffix(name, "/") || strings.HasPrefix(name, "/") || strings.Contains(name, "//") {
		return Err("InvalidUri")
	}
	for i := range len(name) {
		if name[i] == '/' {
			if r := s.get(name[:i]); r != nil && !r.isDirectory() {
				return Err("PathAlreadyExists")
			}
		}
	}
	return nil
}

// makeParents makes the directories that lead to a name. The caller holds mu for writing.
func (s *Store) makeParents(name string) {
	for i := range len(name) {
		if name[i] == '/' && s.get(name[:i]) == nil {
			dir := &record{metadata: map[string]string{folderKey: "true"}}
			s.stamp(dir)
			s.mu.blobs.Set(name[:i], dir)
		}
	}
}

// below returns the names below a directory, at most so many. The caller holds mu.
func (s *Store) below(dir string, most int) []string {
	var names []string
	it := s.mu.blobs.Iter()
	for ok := it.Seek(dir + "/"); ok && strings.HasPrefix(it.Key(), dir+"/") && len(names) < most; ok = it.Next() {
		names = append(names, it.Key())
	}
	return names
}

// Rename gives a file or directory another name, with all that is below it ("Path - Create", x-ms-rename-source).
func (s *Store) Rename(dst, src string, o blob.RenameOptions) error {
	if !s.opts.Hierarchical {
		return Err("NotImplemented")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	from, to := s.get(src), s.get(dst)
	switch {
	case from == nil:
		return Err("SourcePathNotFound")
	case checkChange(from, o.Source) != nil:
		return Err("SourceConditionNotMet")
	case dst == src || strings.HasPrefix(dst, src+"/"):
		return Err("InvalidRenameSourcePath")
	case to != nil && (o.Condition.IfNoneMatch == blob.Any || to.isDirectory() != from.isDirectory()):
		return Err("PathAlreadyExists")
	case to.isDirectory() && len(s.below(dst, 1)) > 0:
		return Err("DirectoryNotEmpty")
	}
	if err := checkWrite(to, o.Condition); err != nil {
		return err
	}
	if err := s.checkPath(dst); err != nil {
		return err
	}
	if i := strings.LastIndexByte(dst, '/'); i >= 0 && s.get(dst[:i]) == nil {
		return Err("RenameDestinationParentPathNotFound")
	}
	if err := s.checkLease(src); err != nil {
		return err
	}
	names := []string{src}
	if from.isDirectory() {
		names = append(names, s.below(src, s.mu.blobs.Len())...)
	}
	delete(s.mu.leases, dst)
	delete(s.mu.staged, dst)
	for _, name := range names {
		now := dst + name[len(src):]
		s.mu.blobs.Set(now, s.get(name))
		s.mu.blobs.Delete(name)
		delete(s.mu.staged, name)
		if l, ok := s.mu.leases[name]; ok {
			s.mu.leases[now] = l
			delete(s.mu.leases, name)
		}
	}
	return nil
}

// DeleteDirectory deletes an empty directory ("Path - Delete", recursive=false).
func (s *Store) DeleteDirectory(name string) error {
	if !s.opts.Hierarchical {
		return Err("NotImplemented")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r := s.get(name); {
	case r == nil:
		return Err("PathNotFound")
	case len(s.below(name, 1)) > 0:
		return Err("DirectoryNotEmpty")
	case !r.isDirectory():
		return Err("InvalidHeaderValue")
	}
	s.mu.blobs.Delete(name)
	return nil
}

// Hierarchical is a container in memory with a hierarchical namespace.
type Hierarchical struct{ *Mem }

var _ blob.Renamer = Hierarchical{}

// NewHierarchical is NewContainer for a store with StoreOptions.Hierarchical.
func NewHierarchical(s *Store, url string) Hierarchical { return Hierarchical{NewContainer(s, url)} }

// Rename implements blob.Renamer.
func (h Hierarchical) Rename(ctx context.Context, dst, src string, o blob.RenameOptions) error {
	if err := alive(ctx, "Rename", dst); err != nil {
		return err
	}
	return fail("Rename", dst, h.writer(src).Rename(dst, src, o))
}

// DeleteDirectory implements blob.Renamer.
func (h Hierarchical) DeleteDirectory(ctx context.Context, name string) error {
	if err := alive(ctx, "DeleteDirectory", name); err != nil {
		return err
	}
	return fail("DeleteDirectory", name, h.store.DeleteDirectory(name))
}

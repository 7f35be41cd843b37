package fs

import (
	"maps"
	"strings"
)

// ContentTypes gives the content type of a new blob by the end of its name: a dot and what follows, in lower case.
type ContentTypes map[string]string

// NewContentTypes returns the built-in table with other entries in place of, or beside, its own. An empty type means that
// none is given, which the service makes application/octet-stream.
//
// The table is ours and the same everywhere. The mime package of the standard library reads files of the machine, so that
// two hosts would give one name two types.
func NewContentTypes(others map[string]string) ContentTypes {
	t := maps.Clone(contentTypes)
	maps.Copy(t, others)
	return t
}

// of returns the content type of a name, "" if the table has none. The longest end that the table has counts, and the name
// of a hidden file is not an end.
func (t ContentTypes) of(name string) string {
	name = strings.ToLower(name[strings.LastIndexByte(name, '/')+1:])
	for i := 1; i < len(name); i++ {
		if name[i] != '.' {
			continue
		}
		if kind, ok := t[name[i:]]; ok {
			return kind
		}
	}
	return ""
}

// contentTypes are those of IANA's registry (https://www.iana.org/assignments/media-types) where that has one, else what
// the makers of a format say, or what is common. A compressed file is what it is compressed by: a content encoding would
// make browsers and SDKs unpack it. Text has no character set: nobody knows it.
var contentTypes = ContentTypes{
	// Text and documents.
	".txt": "text/plain", ".text": "text/plain", ".log": "text/plain", ".ini": "text/plain", ".conf": "text/plain", ".cfg": "text/plain",
	".md": "text/markdown", ".markdown": "text/markdown", ".rst": "text/x-rst", ".tex": "application/x-tex",
	".html": "text/html", ".htm": "text/html", ".xhtml": "application/xhtml+xml", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript",
	".wasm": "application/wasm", ".map": "application/json", ".webmanifest": "application/manifest+json",
	".pdf": "application/pdf", ".ps": "application/postscript", ".eps": "application/postscript", ".rtf": "application/rtf", ".epub": "application/epub+zip",
	".doc": "application/msword", ".xls": "application/vnd.ms-excel", ".ppt": "application/vnd.ms-powerpoint",
	".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
	".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
	".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
	".odt":  "application/vnd.oasis.opendocument.text", ".ods": "application/vnd.oasis.opendocument.spreadsheet",
	".odp": "application/vnd.oasis.opendocument.presentation",

	// Data.
	".json": "application/json", ".jsonl": "application/jsonl", ".ndjson": "application/x-ndjson", ".geojson": "application/geo+json",
	".ipynb": "application/x-ipynb+json", ".jsonld": "application/ld+json",
	".xml": "application/xml", ".xsl": "application/xml", ".xsd": "application/xml", ".yaml": "application/yaml", ".yml": "application/yaml",
	".toml": "application/toml", ".csv": "text/csv", ".tsv": "text/tab-separated-values", ".sql": "application/sql",
	".parquet": "application/vnd.apache.parquet", ".arrow": "application/vnd.apache.arrow.file", ".feather": "application/vnd.apache.arrow.file",
	".avro": "application/vnd.apache.avro", ".sqlite": "application/vnd.sqlite3", ".sqlite3": "application/vnd.sqlite3",
	".h5": "application/x-hdf5", ".hdf5": "application/x-hdf5", ".nc": "application/x-netcdf", ".grib": "application/wmo-grib", ".grib2": "application/wmo-grib",
	".ttl": "text/turtle", ".kml": "application/vnd.google-earth.kml+xml", ".kmz": "application/vnd.google-earth.kmz",
	".dcm": "application/dicom", ".fits": "application/fits", ".las": "application/vnd.las", ".laz": "application/vnd.laszip",

	// Archives and what is compressed.
	".gz": "application/gzip", ".tgz": "application/gzip", ".zst": "application/zstd", ".tzst": "application/zstd", ".bz2": "application/x-bzip2",
	".xz": "application/x-xz", ".lz4": "application/x-lz4", ".zip": "application/zip", ".7z": "application/x-7z-compressed", ".rar": "application/vnd.rar",
	".tar": "application/x-tar", ".jar": "application/java-archive", ".whl": "application/zip", ".iso": "application/x-iso9660-image",
	".deb": "application/vnd.debian.binary-package", ".rpm": "application/x-rpm",

	// Pictures.
	".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp", ".avif": "image/avif",
	".svg": "image/svg+xml", ".bmp": "image/bmp", ".ico": "image/vnd.microsoft.icon", ".tif": "image/tiff", ".tiff": "image/tiff",
	".heic": "image/heic", ".heif": "image/heif", ".jxl": "image/jxl", ".jp2": "image/jp2", ".psd": "image/vnd.adobe.photoshop", ".exr": "image/x-exr",

	// Sound and video.
	".mp3": "audio/mpeg", ".m4a": "audio/mp4", ".aac": "audio/aac", ".oga": "audio/ogg", ".ogg": "audio/ogg", ".opus": "audio/ogg",
	".wav": "audio/wav", ".flac": "audio/flac", ".mid": "audio/midi", ".midi": "audio/midi",
	".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm", ".mkv": "video/matroska", ".avi": "video/vnd.avi",
	".mpeg": "video/mpeg", ".mpg": "video/mpeg", ".ogv": "video/ogg", ".3gp": "video/3gpp",
	".m3u8": "application/vnd.apple.mpegurl", ".mpd": "application/dash+xml", ".vtt": "text/vtt",

	// Letters and models.
	".woff": "font/woff", ".woff2": "font/woff2", ".ttf": "font/ttf", ".otf": "font/otf",
	".stl": "model/stl", ".obj": "model/obj", ".gltf": "model/gltf+json", ".glb": "model/gltf-binary",

	// Programs.
	".py": "text/x-python", ".sh": "application/x-sh", ".c": "text/x-c", ".h": "text/x-c", ".cpp": "text/x-c++", ".hpp": "text/x-c++",
	".go": "text/x-go", ".rs": "text/x-rust", ".java": "text/x-java", ".r": "text/x-r", ".php": "application/x-httpd-php",
}

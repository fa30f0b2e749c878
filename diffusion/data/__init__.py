"""What the generators learn from: objects with words, their pictures, and captions that stay true when the object changes.

`object_set.open_objects` reads a packed set or a folder of meshes, `object_views.object_views` draws an object through the
protocol's cameras, `augment.augmented` changes a mesh and its words together, `captions.caption` writes the sentence. Depends
on `splat`, torch and numpy; open3d and trimesh are imported by what needs them.
"""

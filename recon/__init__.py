"""From photographs to posed views and first Gaussians.

Main functions: `recon.photos.read_photos`, `recon.poses.solve_poses`, `recon.initialise.initial_splats`;
`recon.reconstruct` strings them together. Depends on `splat`, OpenCV, kornia and pycolmap (imported when used).
"""
